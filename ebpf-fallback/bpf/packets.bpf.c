// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What a program with a raw socket does with its packets, done at the socket:
 * counts them, or looks into the headers and counts those of one port. None is
 * queued for the program. The layouts are repeated in src/packets.rs.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct counts {
	__u64 packets;
	/* Of the port; and of even number, which should be the same ones. */
	__u64 found;
	__u64 even;
};

/* Behind the Ethernet header: the port, and the packet's number. */
struct payload {
	__u16 port;
	__u8 number[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counters SEC(".maps");

#define ETHERNET_HEADER 14
#define PORT 1000
/* What a socket filter returns for a packet that nobody is to see. */
#define DROP 0

static struct counts *counts(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&counters, &key);
}

SEC("socket")
int count(struct __sk_buff *packet __attribute__((unused)))
{
	struct counts *all = counts();

	if (all)
		all->packets++;
	return DROP;
}

SEC("socket")
int filter(struct __sk_buff *packet)
{
	struct counts *all = counts();
	struct payload payload;

	if (!all || bpf_skb_load_bytes(packet, ETHERNET_HEADER, &payload, sizeof(payload)))
		return DROP;
	all->packets++;
	if (payload.port == bpf_htons(PORT))
		all->found++;
	if (payload.number[7] % 2 == 0)
		all->even++;
	return DROP;
}
