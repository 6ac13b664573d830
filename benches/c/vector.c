// Loops in SSE and AVX registers, with intrinsics and as the compiler makes
// them of plain C.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

// Counts a byte, sixteen at a time.
uint64_t ub_sse_count(const uint8_t *data, size_t length, uint64_t wanted)
{
	__m128i pattern = _mm_set1_epi8((char)wanted);
	uint64_t count = 0;

	for (size_t i = 0; i + 16 <= length; i += 16) {
		__m128i block = _mm_loadu_si128((const __m128i *)(data + i));

		count += (unsigned int)__builtin_popcount(
			(unsigned int)_mm_movemask_epi8(_mm_cmpeq_epi8(block, pattern)));
	}
	return count;
}

// to[i] = from[i] ^ mask: what a WebSocket does to its payload, for some
// frames with different masks.
uint64_t ub_sse_mask(uint8_t *to, const uint8_t *from, size_t length, uint64_t frames)
{
	uint64_t digest = 0;

	for (uint64_t frame = 0; frame < frames; frame++) {
		__m128i pattern = _mm_set1_epi32((int)(frame * 0x9e3779b9));

		for (size_t i = 0; i + 16 <= length; i += 16) {
			__m128i block = _mm_loadu_si128((const __m128i *)(from + i));

			_mm_storeu_si128((__m128i *)(to + i), _mm_xor_si128(block, pattern));
		}
		digest = digest * 31 + to[length - 1];
	}
	return digest;
}

__attribute__((target("avx2,fma"))) uint64_t ub_avx_dot(const float *a, const float *b,
							size_t count)
{
	__m256 sum = _mm256_setzero_ps();
	float parts[8];
	double total = 0;

	for (size_t i = 0; i + 8 <= count; i += 8)
		sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
	_mm256_storeu_ps(parts, sum);
	for (int i = 0; i < 8; i++)
		total += parts[i];
	return (uint64_t)(int64_t)total;
}

// Are all bytes of each record ASCII? 32 at a time, up to the first that are not.
__attribute__((target("avx2"))) uint64_t ub_avx_ascii(const uint8_t *data, size_t length,
						      size_t record)
{
	uint64_t valid = 0;

	for (size_t start = 0; start + record <= length; start += record / 4) {
		size_t i = start, end = start + record;

		while (i + 32 <= end && !_mm256_movemask_epi8(_mm256_loadu_si256(
					       (const __m256i *)(data + i))))
			i += 32;
		valid = valid * 3 + (i - start);
	}
	return valid;
}

// Scalar float arithmetic: a matrix product.
uint64_t ub_matrix(double *c, const double *a, const double *b, size_t n)
{
	double trace = 0;

	for (size_t i = 0; i < n; i++) {
		for (size_t j = 0; j < n; j++) {
			double sum = 0;

			for (size_t k = 0; k < n; k++)
				sum += a[i * n + k] * b[k * n + j];
			c[i * n + j] = sum;
		}
		trace += c[i * n + i];
	}
	return (uint64_t)(int64_t)trace;
}
