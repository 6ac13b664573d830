//! Kernels in C, compiled into this program: see `benches/c`.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::Kernel;
use super::memory::{Memory, Numbers, integers, keys};
use crate::guest::Call;

/// The kernels of this file.
pub static KERNELS: [Kernel; 30] = [
    Kernel::own("fnv-1a of bytes", fnv1a),
    Kernel::own("djb2 of keys", djb2),
    Kernel::own("siphash of keys", siphash),
    Kernel::own("crc32 by table", crc32),
    Kernel::own("byte copy", byte_copy),
    Kernel::own("lower case", lower_case),
    Kernel::own("sum of words", word_sum),
    Kernel::own("list walk", list_walk),
    Kernel::own("tree look-ups", tree_lookups),
    Kernel::own("dictionary", dictionary),
    Kernel::own("HTTP header parser", http_header),
    Kernel::own("JSON tokens", json),
    Kernel::own("bytecode interpreter", interpreter),
    Kernel::own("small calls", small_calls),
    Kernel::own("deep calls", deep_calls),
    Kernel::own("recursion", recursion),
    Kernel::own("recursive tree sum", tree_sum),
    Kernel::own("comparator calls", comparator),
    Kernel::own("virtual calls", virtual_calls),
    Kernel::own("integer formatting", format_integers),
    Kernel::own("integer parsing", parse_integers),
    Kernel::own("base64", base64),
    Kernel::own("hex both ways", hex),
    Kernel::own("varints", varints),
    Kernel::own("heap sort", heap_sort),
    Kernel::own("SSE count", sse_count),
    Kernel::own("SSE xor mask", sse_mask),
    Kernel::own("AVX dot product", avx_dot),
    Kernel::own("AVX is ASCII", avx_ascii),
    Kernel::own("matrix product", matrix),
];

fn fnv1a(memory: &mut Memory) -> Result<Call> {
    Ok(call!(ub_fnv1a, memory.bytes(&Numbers::new(1).bytes(4096)), 4096))
}

fn djb2(memory: &mut Memory) -> Result<Call> {
    let keys = keys(200);
    Ok(call!(ub_djb2, memory.strings(&keys).0, keys.len()))
}

fn siphash(memory: &mut Memory) -> Result<Call> {
    Ok(call!(ub_siphash, memory.bytes(&Numbers::new(2).bytes(90)), 90))
}

fn crc32(memory: &mut Memory) -> Result<Call> {
    let table: Vec<u8> = (0..256_u32)
        .map(|byte| {
            (0..8).fold(byte, |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    let data = memory.bytes(&Numbers::new(3).bytes(3000));
    Ok(call!(ub_crc32, data, 3000, memory.bytes(&table)))
}

fn byte_copy(memory: &mut Memory) -> Result<Call> {
    let from = memory.bytes(&Numbers::new(4).bytes(12288));
    Ok(call!(ub_byte_copy, memory.zeroed(12288), from, 12288))
}

fn lower_case(memory: &mut Memory) -> Result<Call> {
    // Mostly small letters, as in names of headers.
    let mut numbers = Numbers::new(5);
    let text: Vec<u8> = (0..4096)
        .map(|at| if at % 9 == 0 { b'A' } else { b'a' } + numbers.below(26) as u8)
        .collect();
    Ok(call!(ub_lower_case, memory.zeroed(4096), memory.bytes(&text), 4096))
}

fn word_sum(memory: &mut Memory) -> Result<Call> {
    let mut numbers = Numbers::new(6);
    let words: Vec<u64> = (0..4096).map(|_| numbers.below(u64::MAX)).collect();
    Ok(call!(ub_word_sum, memory.words(&words), words.len(), 2))
}

/// The numbers below `count` in an order that looks random.
fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers = Numbers::new(count as u64);
    let mut order: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        order.swap(at, numbers.below(at as u64 + 1) as usize);
    }
    order
}

/// Makes `count` records of `size` words each; `fill` gets the address of the
/// first and the record's number and writes the record.
fn records(
    memory: &mut Memory,
    count: usize,
    size: usize,
    fill: impl Fn(u64, usize, &mut [u64]),
) -> u64 {
    let address = memory.zeroed(8 * size * count);
    let mut words = vec![0; size * count];
    for (number, record) in words.chunks_exact_mut(size).enumerate() {
        fill(address, number, record);
    }
    memory.overwrite(address, &words);
    address
}

fn list_walk(memory: &mut Memory) -> Result<Call> {
    let order = shuffled(1024);
    let mut next = vec![None; order.len()];
    for pair in order.windows(2) {
        next[pair[0]] = Some(pair[1]);
    }
    let base = records(memory, order.len(), 2, |base, number, record| {
        record[0] = next[number].map_or(0, |next| base + 16 * next as u64);
        record[1] = number as u64;
    });
    Ok(call!(ub_list_walk, base + 16 * order[0] as u64))
}

/// Children of node `number` of a complete binary search tree of `count`
/// nodes in heap order, and its key.
fn tree(count: usize) -> Vec<(Option<usize>, Option<usize>, u64)> {
    fn visit(at: usize, nodes: &mut [(Option<usize>, Option<usize>, u64)], key: &mut u64) {
        let child = |child: usize| (child < nodes.len()).then_some(child);
        let (left, right) = (child(2 * at + 1), child(2 * at + 2));
        if let Some(left) = left {
            visit(left, nodes, key);
        }
        *key += 3;
        nodes[at] = (left, right, *key);
        if let Some(right) = right {
            visit(right, nodes, key);
        }
    }
    let mut nodes = vec![(None, None, 0); count];
    visit(0, &mut nodes, &mut 0);
    nodes
}

fn tree_lookups(memory: &mut Memory) -> Result<Call> {
    let nodes = tree(511);
    let at = |base: u64, child: Option<usize>| child.map_or(0, |child| base + 32 * child as u64);
    let root = records(memory, nodes.len(), 4, |base, number, record| {
        let (left, right, key) = nodes[number];
        record.copy_from_slice(&[at(base, left), at(base, right), key, number as u64]);
    });
    let mut numbers = Numbers::new(8);
    let keys: Vec<u64> = (0..100)
        .map(|_| if numbers.below(8) == 0 { 1 } else { 3 * (1 + numbers.below(511)) })
        .collect();
    Ok(call!(ub_tree_lookups, root, memory.words(&keys), keys.len()))
}

fn dictionary(memory: &mut Memory) -> Result<Call> {
    const MASK: u64 = 255;
    let mut numbers = Numbers::new(9);
    let keys: Vec<u64> = (0..200).map(|_| numbers.below(1 << 40)).collect();
    let slot = |key: u64| (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & MASK) as usize;
    let base = records(memory, keys.len(), 3, |base, number, record| {
        let earlier = keys[..number].iter().rposition(|key| slot(*key) == slot(keys[number]));
        let next = earlier.map_or(0, |next| base + 24 * next as u64);
        record.copy_from_slice(&[next, keys[number], number as u64]);
    });
    let mut table = vec![0; MASK as usize + 1];
    for (number, key) in keys.iter().enumerate() {
        table[slot(*key)] = base + 24 * number as u64;
    }
    let wanted: Vec<u64> = (0..2000)
        .map(|_| keys[numbers.below(keys.len() as u64) as usize] + numbers.below(6) / 5)
        .collect();
    Ok(call!(ub_dictionary, memory.words(&table), MASK, memory.words(&wanted), wanted.len()))
}

/// What a browser sends, without the request line.
const HEADERS: &str = "Host: www.example.org\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Referer: https://www.example.org/articles/2024/some-page.html?from=start&to=end\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    If-Modified-Since: Tue, 01 Oct 2024 10:11:12 GMT\r\n\
    Cache-Control: max-age=0\r\n";

/// [`HEADERS`] some times and the empty line.
pub(super) fn many_headers() -> String {
    HEADERS.repeat(5) + "\r\n"
}

fn http_header(memory: &mut Memory) -> Result<Call> {
    let text = many_headers();
    Ok(call!(ub_http_header, memory.bytes(text.as_bytes()), text.len()))
}

fn json(memory: &mut Memory) -> Result<Call> {
    let mut text = String::from("[");
    for (number, key) in keys(30).iter().enumerate() {
        writeln!(text, "{{\"key\": \"{key}\", \"id\": {number}, \"tags\": [1.5, true, null]}},")?;
    }
    text.push_str("{}]");
    Ok(call!(ub_json_tokens, memory.bytes(text.as_bytes())))
}

fn interpreter(memory: &mut Memory) -> Result<Call> {
    // memory[0] = 7; for n in 120..0 { memory[0] = (memory[0] * 5 ^ n) + 3 }
    const PUSH: u8 = 0;
    const ADD: u8 = 1;
    const MULTIPLY: u8 = 2;
    const DUPLICATE: u8 = 3;
    const SWAP: u8 = 4;
    const DROP: u8 = 5;
    const DECREMENT: u8 = 6;
    const JUMP_IF: u8 = 7;
    const STORE: u8 = 8;
    const LOAD: u8 = 9;
    const XOR: u8 = 10;
    const HALT: u8 = 11;
    let mut program = vec![PUSH, 7, STORE, 0, PUSH, 120];
    let again = program.len();
    program.extend([LOAD, 0, PUSH, 5, MULTIPLY, SWAP, DUPLICATE, STORE, 1, SWAP]);
    program.extend([LOAD, 1, XOR, PUSH, 3, ADD, STORE, 0, DECREMENT, DUPLICATE, DUPLICATE, DROP]);
    program.extend([JUMP_IF, 0]);
    let back = again as i64 - program.len() as i64;
    *program.last_mut().expect("just pushed") = i8::try_from(back)? as u8;
    program.extend([LOAD, 0, HALT]);
    let stack = memory.zeroed(4096);
    Ok(call!(ub_interpreter, memory.bytes(&program), stack))
}

fn small_calls(_: &mut Memory) -> Result<Call> {
    Ok(call!(ub_small_calls, 1000))
}

fn deep_calls(_: &mut Memory) -> Result<Call> {
    Ok(call!(ub_deep_calls, 200))
}

fn recursion(_: &mut Memory) -> Result<Call> {
    // 2 * n + 3 deep at most, about 2 * n * n calls.
    Ok(call!(ub_recursion, 2, 40))
}

fn tree_sum(memory: &mut Memory) -> Result<Call> {
    let nodes = tree(1023);
    let at = |base: u64, child: Option<usize>| child.map_or(0, |child| base + 24 * child as u64);
    let root = records(memory, nodes.len(), 3, |base, number, record| {
        let (left, right, key) = nodes[number];
        record.copy_from_slice(&[at(base, left), at(base, right), key]);
    });
    Ok(call!(ub_tree_sum, root))
}

fn words_to_sort(count: usize) -> Vec<u64> {
    let mut numbers = Numbers::new(10);
    (0..count).map(|_| numbers.below(1 << 60)).collect()
}

fn comparator(memory: &mut Memory) -> Result<Call> {
    let words = words_to_sort(100);
    let scratch = memory.zeroed(8 * words.len());
    Ok(call!(ub_comparator, scratch, memory.words(&words), words.len()))
}

fn virtual_calls(memory: &mut Memory) -> Result<Call> {
    let kinds = memory.bytes(&Numbers::new(12).bytes(700));
    Ok(call!(ub_virtual_calls, memory.zeroed(700 * 24), kinds, 700))
}

fn format_integers(memory: &mut Memory) -> Result<Call> {
    let numbers: Vec<u64> = integers(200).iter().map(|number| *number as u64).collect();
    let to = memory.zeroed(22 * numbers.len());
    Ok(call!(ub_format_integers, to, memory.words(&numbers), numbers.len()))
}

fn parse_integers(memory: &mut Memory) -> Result<Call> {
    let text: Vec<String> = integers(300).iter().map(i64::to_string).collect();
    Ok(call!(ub_parse_integers, memory.bytes(text.join(" ").as_bytes())))
}

fn base64(memory: &mut Memory) -> Result<Call> {
    let to = memory.zeroed(6000);
    Ok(call!(ub_base64, to, memory.bytes(&Numbers::new(13).bytes(4500)), 4500))
}

fn hex(memory: &mut Memory) -> Result<Call> {
    let (to, back) = (memory.zeroed(2000), memory.zeroed(1000));
    Ok(call!(ub_hex, to, back, memory.bytes(&Numbers::new(14).bytes(1000)), 1000))
}

fn varints(memory: &mut Memory) -> Result<Call> {
    let mut bytes = Vec::new();
    for number in integers(1000) {
        let mut rest = number.unsigned_abs();
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    Ok(call!(ub_varints, memory.bytes(&bytes), bytes.len()))
}

fn heap_sort(memory: &mut Memory) -> Result<Call> {
    let words: Vec<u8> =
        words_to_sort(256).iter().flat_map(|word| ((word >> 28) as u32).to_le_bytes()).collect();
    let scratch = memory.zeroed(words.len());
    Ok(call!(ub_heap_sort, scratch, memory.bytes(&words), words.len() / 4))
}

fn sse_count(memory: &mut Memory) -> Result<Call> {
    Ok(call!(ub_sse_count, memory.bytes(&Numbers::new(15).bytes(32768)), 32768, 10))
}

fn sse_mask(memory: &mut Memory) -> Result<Call> {
    let to = memory.zeroed(16384);
    let from = memory.bytes(&Numbers::new(16).bytes(16384));
    Ok(call!(ub_sse_mask, to, from, 16384, 10))
}

fn floats(memory: &mut Memory, seed: u64) -> u64 {
    let mut numbers = Numbers::new(seed);
    let bytes: Vec<u8> =
        (0..4096).flat_map(|_| (numbers.below(100) as f32 - 50.0).to_le_bytes()).collect();
    memory.bytes(&bytes)
}

fn avx_dot(memory: &mut Memory) -> Result<Call> {
    ensure!(has_avx2_and_fma(), "this CPU has no AVX2 or no FMA");
    Ok(call!(ub_avx_dot, floats(memory, 17), floats(memory, 18), 4096))
}

fn avx_ascii(memory: &mut Memory) -> Result<Call> {
    ensure!(has_avx2_and_fma(), "this CPU has no AVX2 or no FMA");
    let mut text = Numbers::new(19).bytes(32768);
    for (at, byte) in text.iter_mut().enumerate() {
        if at % 10_000 != 0 {
            *byte &= 0x7f;
        }
    }
    Ok(call!(ub_avx_ascii, memory.bytes(&text), 32768, 2048))
}

fn has_avx2_and_fma() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

fn matrix(memory: &mut Memory) -> Result<Call> {
    const N: usize = 16;
    let mut numbers = Numbers::new(20);
    let mut doubles = |memory: &mut Memory| {
        let words: Vec<u64> =
            (0..N * N).map(|_| (numbers.below(100) as f64 / 4.0).to_bits()).collect();
        memory.words(&words)
    };
    let (a, b) = (doubles(memory), doubles(memory));
    Ok(call!(ub_matrix, memory.zeroed(8 * N * N), a, b, N))
}
