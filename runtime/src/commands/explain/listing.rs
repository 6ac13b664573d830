//! The program's code and its translation, side by side.

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, SymbolResolver};

use super::targets::Targets;
use crate::inspect::FragmentDump;

/// Characters for the program's side.
const LEFT: usize = 52;
/// Bits of the code.
const BITS: u32 = 64;

/// The listing; `name` knows the names of user addresses.
pub(super) fn render(
    fragment: &FragmentDump,
    name: &mut dyn FnMut(u64) -> Option<String>,
) -> String {
    let guest = guest_instructions(fragment);
    let mut program = formatter(Some(Targets::of(guest.values(), name)));
    // Its addresses are places in the fragment, which have no names.
    let mut translation = formatter(None);
    let mut out = String::new();
    let entry = name(fragment.entry).map(|name| format!(" {name}")).unwrap_or_default();
    let _ = writeln!(
        out,
        "fragment {:#x}{entry}: {} instructions of the program in {} bytes",
        fragment.entry,
        fragment.map.len(),
        fragment.code.len()
    );
    let _ = writeln!(out, "{:<LEFT$}| translation", "program");
    let mut place = String::new();
    for (index, (address, offset)) in fragment.map.iter().enumerate() {
        let next = fragment.map.get(index + 1).map_or(fragment.code.len(), |(_, at)| *at as usize);
        let here = name(*address).map(|name| function_of(&name).to_owned()).unwrap_or_default();
        if here != place {
            if !here.is_empty() {
                let _ = writeln!(out, "{here}:");
            }
            place = here;
        }
        let left = match guest.get(address) {
            Some(instruction) => format!("{address:x}  {}", text(&mut program, instruction)),
            None => format!("{address:x}  (code is gone)"),
        };
        let offset = (*offset as usize).min(next);
        let translated = decode(&fragment.code[offset..next], offset as u64);
        let mut right =
            translated.iter().map(|i| format!("{:4x}  {}", i.ip(), text(&mut translation, i)));
        let first = right.next().unwrap_or_default();
        let _ = writeln!(out, "{left:<LEFT$}| {first}");
        for line in right {
            let _ = writeln!(out, "{:<LEFT$}| {line}", "");
        }
    }
    out.push_str(&exits(fragment, name));
    out
}

/// A formatter that names the `targets` it knows.
fn formatter(targets: Option<Targets>) -> IntelFormatter {
    let targets = targets.map(|targets| Box::new(targets) as Box<dyn SymbolResolver>);
    let mut formatter = IntelFormatter::with_options(targets, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    // Whoever wants to know more asks for the address.
    options.set_show_symbol_address(true);
    formatter
}

/// The instructions of the program that the fragment was made from.
fn guest_instructions(fragment: &FragmentDump) -> BTreeMap<u64, Instruction> {
    let at = |address: u64| {
        let (start, bytes) = fragment
            .guest
            .iter()
            .find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&address))?;
        let skip = usize::try_from(address - start).ok()?;
        let mut decoder = Decoder::with_ip(BITS, &bytes[skip..], address, DecoderOptions::NONE);
        Some((address, decoder.decode()))
    };
    fragment.map.iter().filter_map(|(address, _)| at(*address)).collect()
}

fn decode(bytes: &[u8], ip: u64) -> Vec<Instruction> {
    Decoder::with_ip(BITS, bytes, ip, DecoderOptions::NONE).into_iter().collect()
}

fn text(formatter: &mut IntelFormatter, instruction: &Instruction) -> String {
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

/// The name without the distance.
pub(super) fn function_of(name: &str) -> &str {
    name.split("+0x").next().unwrap_or_default()
}

/// The ways out, each once.
fn exits(fragment: &FragmentDump, name: &mut dyn FnMut(u64) -> Option<String>) -> String {
    let mut counted: BTreeMap<(u64, &str), usize> = BTreeMap::new();
    for exit in &fragment.exits {
        *counted.entry((exit.address, &exit.why)).or_default() += 1;
    }
    let mut out = format!("\n{} ways out:\n", fragment.exits.len());
    for ((address, why), count) in counted {
        let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
        let name = name(address).unwrap_or_default();
        let _ = writeln!(out, "  {address:#x}  {name:<40} {why}{times}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ExitDump;

    #[test]
    fn both_sides_are_there_line_by_line() {
        let fragment = FragmentDump {
            entry: 0x1000,
            // mov eax, 1; then the exit of a syscall: mov [rsp+8], eax; nop
            code: vec![0xb8, 1, 0, 0, 0, 0x89, 0x44, 0x24, 8, 0x90],
            map: vec![(0x1000, 0), (0x1005, 5), (0x2000, 10)],
            exits: vec![
                ExitDump { address: 0x1005, why: "system call".into() },
                ExitDump { address: 0x1000, why: "poll".into() },
                ExitDump { address: 0x1000, why: "poll".into() },
            ],
            guest: vec![(0x1000, vec![0xb8, 1, 0, 0, 0, 0x0f, 0x05])],
        };
        let mut name =
            |address: u64| (address < 0x2000).then(|| format!("libc!write+{:#x}", address - 0xff0));
        let expected = "\
fragment 0x1000 libc!write+0x10: 3 instructions of the program in 10 bytes
program                                             | translation
libc!write:
1000  mov eax, 1                                    |    0  mov eax, 1
1005  syscall                                       |    5  mov [rsp+8], eax
                                                    |    9  nop
2000  (code is gone)                                |

3 ways out:
  0x1000  libc!write+0x10                          poll (2 times)
  0x1005  libc!write+0x15                          system call
";
        let listing = render(&fragment, &mut name);
        let trimmed: Vec<_> = listing.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n"), expected.trim_end());
    }
    #[test]
    fn calls_of_other_functions_have_their_names() {
        let fragment = FragmentDump {
            entry: 0x1000,
            code: vec![0x90, 0x90],
            map: vec![(0x1000, 0), (0x1002, 1)],
            exits: Vec::new(),
            // je 0x1007; call 0x3000
            guest: vec![(0x1000, vec![0x74, 5, 0xe8, 0xf9, 0x1f, 0, 0])],
        };
        let mut name = |address: u64| {
            let (function, start) = if address < 0x2000 { ("f", 0x1000) } else { ("g", 0x3000) };
            Some(match address - start {
                0 => format!("a!{function}"),
                distance => format!("a!{function}+{distance:#x}"),
            })
        };
        let listing = render(&fragment, &mut name);
        assert!(listing.contains("\n1000  je short 0x1007 "), "{listing}");
        assert!(listing.contains("\n1002  call a!g (0x3000) "), "{listing}");
    }
}
