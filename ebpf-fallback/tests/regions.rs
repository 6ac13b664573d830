//! Which packets compiled C programs do nothing with, against the programs.
//!
//! One process gets all packets, another one only those that the region
//! keeps: both must print the same in the end.

mod support;

use support::{Random, Receiver, compile, random_packet, udp_packet};
use ub_ebpf_fallback::packet_filter::{Effect, ProcessMemory, Refused, Region, explore};

/// Random packets for each variant.
const PACKETS: usize = 4000;

fn region_of(receiver: &Receiver) -> Result<Region, Refused> {
    let snapshot = receiver.snapshot();
    let memory = ProcessMemory::of(receiver.child.id()).unwrap();
    explore(&snapshot, &memory)
}

/// Runs both processes; returns what they print, and how many of the packets
/// the second one did not get.
fn compare(
    options: &[&str],
    mut drops: impl FnMut(&Region, &[u8]) -> bool,
) -> (String, String, usize) {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), options);
    let (all, filtered) = (Receiver::start(&program), Receiver::start(&program));
    all.snapshot();
    let region = region_of(&filtered).unwrap_or_else(|refused| panic!("{options:?}: {refused}"));
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut dropped = 0;
    for _ in 0..PACKETS {
        let packet = random_packet(&mut random);
        all.send(&packet);
        if drops(&region, received(&packet)) {
            dropped += 1;
        } else {
            filtered.send(&packet);
        }
    }
    (all.finish(), filtered.finish(), dropped)
}

/// What `count.c` gets of a packet.
fn received(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(2048)]
}

#[test]
fn programs_do_the_same_without_the_packets_that_are_dropped() {
    for options in [
        &[][..],
        &["-O1"],
        &["-O3"],
        &["-Os"],
        &["-DFIXED_HEADER"],
        &["-DPORT_RANGE"],
        &["-DREADS_GLOBAL"],
        &["-DUSES_READ"],
        &["-static"],
        &["-no-pie", "-DPORT_RANGE"],
        &["-Wl,-z,now", "-fno-plt"],
    ] {
        let (all, filtered, dropped) = compare(options, Region::is_dropped);
        assert_eq!(all, filtered, "{options:?}");
        // About a quarter of the packets is wanted.
        assert!(dropped > PACKETS / 2, "{options:?}: only {dropped} of {PACKETS} dropped");
        let wanted: usize = all.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(wanted > PACKETS / 20, "{options:?}: {all}");
        assert!(wanted + dropped <= PACKETS, "{options:?}: {all}");
        // The program gets little else than what it wants.
        assert!(wanted + dropped > PACKETS * 9 / 10, "{options:?}: {dropped} dropped, {all}");
    }
}

#[test]
fn a_wrong_decision_is_found() {
    let mut count = 0;
    let wrong = |region: &Region, packet: &[u8]| {
        count += 1;
        region.is_dropped(packet) || count % 100 == 0
    };
    let (all, filtered, _) = compare(&[], wrong);
    assert_ne!(all, filtered);
}

#[test]
fn effects_are_refused_by_name() {
    type Expected = fn(&Effect) -> bool;
    let cases: [(&[&str], Expected); 8] = [
        (&["-DCOUNTS_ALL"], |effect| matches!(effect, Effect::Memory(_))),
        (&["-DLOGS"], |effect| *effect == Effect::SystemCall(Some(1))),
        // Through the page that the kernel keeps the time in.
        (&["-DREADS_CLOCK"], |effect| {
            matches!(effect, Effect::SharedMemory(_) | Effect::NotCode(_) | Effect::Instruction(_))
        }),
        (&["-DLOOPS"], |effect| *effect == Effect::Long),
        (&["-DREADS_UNGUARDED"], |effect| *effect == Effect::OldBytes),
        (&["-DREADS_SHARED"], |effect| matches!(effect, Effect::SharedMemory(_))),
        (&["-DREADS_TABLE"], |effect| *effect == Effect::ComputedAddress),
        (&["-O0", "-DCOUNTS_ALL"], |effect| matches!(effect, Effect::Memory(_))),
    ];
    for (options, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(&compile(dir.path(), options));
        let Err(refused) = region_of(&receiver) else { panic!("{options:?} has a filter") };
        assert!(refused.0.iter().any(expected), "{options:?}: {refused}");
        receiver.kill();
    }
}

#[test]
fn what_changes_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(&compile(dir.path(), &["-DREADS_GLOBAL"]));
    let region = region_of(&receiver).unwrap();
    let other = Receiver::start(&compile(dir.path(), &["-DREADS_GLOBAL", "-no-pie"]));
    // The region knows the port from memory, so it is one of the pieces.
    assert!(region.is_dropped(&udp_packet(4243, 5, 40)));
    assert!(!region.is_dropped(&udp_packet(4242, 5, 40)));
    assert!(region.compares(&4242u16.to_le_bytes()), "{region:?}");
    assert!(!region_of(&other).unwrap().compares(b"no such bytes"));
    receiver.kill();
    other.kill();
}
