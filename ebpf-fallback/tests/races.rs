//! Packets that arrive while a program is busy with one that changes what it
//! wants of them. With a protection taken out, its answers must be wrong.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::cable::Cable;
use support::{LAST_PORT, PATIENCE, Random, WANTED_PORT, compile, udp_packet};
use ub_ebpf_fallback::packet_filter::{Counts, News, Protection, Watcher};

/// Ports of the packets; nothing else distinguishes them.
const PORTS: [u16; 4] = [WANTED_PORT, 5000, 6000, 7000];
const HEADERS: usize = 14 + 20 + 8;
/// Bursts, each to a program of its own, in which the judgement changes.
const BURSTS: usize = 10;
/// Enough sleeps between two looks of the watcher.
const UNWANTED: usize = 30;

/// A program that receives, with the filter that this process makes for it.
struct Filtered {
    child: Child,
    watcher: Watcher,
}

impl Filtered {
    /// Starts the variant of `count.c`, and sends what it does not want until
    /// it has a filter.
    fn start(cable: &Cable, option: &str, without: Option<Protection>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), &[option]);
        let child = Command::new(program)
            .arg(cable.receiver)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let watcher = Watcher::new(child.id()).unwrap();
        let watcher = match without {
            None => watcher,
            Some(protection) => watcher.without(protection),
        };
        let mut filtered = Self { child, watcher };
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no packet filter");
            cable.send_udp(9, UNWANTED);
            match filtered.watcher.work() {
                Some(News::Begun { .. }) => break,
                Some(news) => panic!("{option}: {news:?}"),
                None => {}
            }
        }
        // The gate is armed once the program has come by.
        while filtered.watcher.counts().dropped == 0 {
            assert!(Instant::now() < deadline, "nothing is dropped");
            cable.send_udp(WANTED_PORT + 1, UNWANTED);
        }
        filtered
    }

    /// Ends the program; what it says of wanted and other packets that it
    /// used, and what the filters did.
    fn finish(mut self, cable: &Cable) -> (String, Counts) {
        // The first may be what was announced.
        cable.transmit(&udp_packet(LAST_PORT, 5, 40));
        cable.transmit(&udp_packet(LAST_PORT, 5, 40));
        let stdout = self.child.stdout.take().unwrap();
        let printed = std::io::read_to_string(stdout).unwrap();
        let words: Vec<&str> = printed.split(' ').collect();
        (format!("{} wanted, {} used", words[1], words[5]), self.watcher.counts())
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the programs do, told of each packet.
#[derive(Default)]
struct Model {
    wanted: usize,
    used: usize,
    announced: bool,
}

impl Model {
    fn announces(&mut self, port: u16) {
        if std::mem::take(&mut self.announced) {
            self.used += 1;
        } else if port == WANTED_PORT {
            self.wanted += 1;
            self.announced = true;
        }
    }

    fn says(mut self) -> String {
        self.announces(LAST_PORT);
        format!("{} wanted, {} used", self.wanted, self.used)
    }
}

/// Sends bursts of packets of which each wanted one makes the program want
/// the next as well, whatever that is. Returns what was expected, what the
/// program said, and what the filter did.
fn announce(bursts: usize, without: Option<Protection>) -> Option<(String, String, Counts)> {
    let cable = Cable::new()?;
    let mut filtered = Filtered::start(&cable, "-DANNOUNCES", without);
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut model = Model::default();
    for _ in 0..bursts {
        for _ in 0..=random.below(16) {
            let port = PORTS[random.below(4) as usize];
            model.announces(port);
            cable.transmit(&udp_packet(port, 5, 40));
        }
        cable.settle();
        assert!(filtered.watcher.work().is_none(), "the filter is there all the time");
    }
    let (said, counts) = filtered.finish(&cable);
    Some((model.says(), said, counts))
}

/// Sends one burst in which each wanted packet names the port that is wanted
/// from then on. Returns what was expected and what the program said.
fn learn(random: &mut Random, without: Option<Protection>) -> Option<(String, String)> {
    let cable = Cable::new()?;
    let mut filtered = Filtered::start(&cable, "-DLEARNS", without);
    let (mut wanted_port, mut wanted) = (WANTED_PORT, 0);
    for _ in 0..32 {
        // Always another one.
        let port = PORTS[random.below(4) as usize];
        let others: Vec<u16> = PORTS.into_iter().filter(|other| *other != port).collect();
        let next = others[random.below(3) as usize];
        let mut packet = udp_packet(port, 5, 40);
        packet[HEADERS..HEADERS + 2].copy_from_slice(&next.to_be_bytes());
        cable.transmit(&packet);
        if port == wanted_port {
            wanted += 1;
            wanted_port = next;
        }
    }
    cable.settle();
    filtered.watcher.work();
    let (said, _) = filtered.finish(&cable);
    Some((format!("{wanted} wanted, 0 used"), said))
}

#[test]
fn packets_behind_one_that_announces_them_arrive() {
    let Some((expected, said, counts)) = announce(3000, None) else { return };
    assert_eq!(said, expected, "{counts:?}");
    assert!(counts.dropped > 500, "{counts:?}");
}

#[test]
fn packets_behind_one_that_announces_them_are_lost_without_the_gate() {
    let Some((expected, said, counts)) = announce(100, Some(Protection::Gate)) else { return };
    assert_ne!(said, expected, "the test does not notice: {counts:?}");
}

#[test]
fn packets_behind_one_that_changes_the_judgement_are_judged_by_the_new_one() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..BURSTS {
        let Some((expected, said)) = learn(&mut random, None) else { return };
        assert_eq!(said, expected);
    }
}

#[test]
fn the_old_judgement_stays_without_the_protections() {
    for protection in [Protection::Gate, Protection::Comparison] {
        let mut random = Random(0x1234_5678_9abc_def1);
        let mut noticed = false;
        // On a busy host a burst may arrive one packet at a time.
        for _ in 0..BURSTS {
            let Some((expected, said)) = learn(&mut random, Some(protection)) else { return };
            noticed |= said != expected;
            if noticed {
                break;
            }
        }
        assert!(noticed, "the test does not notice the lack of {protection:?}");
    }
}
