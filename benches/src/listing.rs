//! Code for people: what a kernel was, and what became of it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;

use iced_x86::{Decoder, DecoderOptions, Formatter as _, Instruction, IntelFormatter};
use ub_ring3::Loaded;
use ub_translator::CodeSource;

use crate::guest::Translated;
use crate::process::ProcessCode;

/// How many instructions `code` decodes to.
#[must_use]
pub fn instructions(code: &[u8]) -> usize {
    Decoder::new(64, code, DecoderOptions::NONE).into_iter().count()
}

/// Guest and emitted code of every fragment: each instruction of the guest
/// at its address, below it, indented, what was emitted for it. Behind them,
/// how often one call takes which exit.
///
/// # Errors
/// If this process's code cannot be read.
pub fn listing(translated: &Translated) -> anyhow::Result<String> {
    let mut source = ProcessCode::new()?;
    let mut text = String::new();
    for fragment in translated.fragments() {
        let parts = fragment.parts();
        writeln!(
            text,
            "fragment {:#x}: {} instructions of the guest, {} emitted in {} bytes, {} exits",
            parts.entry,
            parts.guest_instructions,
            instructions(&parts.code),
            parts.code.len(),
            parts.exits.len()
        )?;
        list(fragment, &mut source, &mut text)?;
    }
    taken(translated, &mut text)?;
    Ok(text)
}

/// The exits that a call takes, the most frequent ones first.
fn taken(translated: &Translated, text: &mut String) -> std::fmt::Result {
    let mut exits: Vec<_> = translated.exits().iter().collect();
    exits.sort_unstable_by_key(|&(taken, count)| (Reverse(*count), *taken));
    for (taken, count) in exits {
        let fragments = translated.fragments().iter();
        let of = |fragment: &&Rc<Loaded>| fragment.parts().entry == taken.fragment;
        if let Some(fragment) = fragments.into_iter().find(of) {
            let exit = fragment.parts().exits[taken.exit.0 as usize];
            writeln!(
                text,
                "taken {count} times: {:?} exit {} of {:#x} at {:#x} to {:#x}",
                exit.kind, taken.exit.0, taken.fragment, exit.user_ip, taken.next
            )?;
        }
    }
    Ok(())
}

fn list(fragment: &Loaded, source: &mut ProcessCode, text: &mut String) -> std::fmt::Result {
    let parts = fragment.parts();
    let origin: HashMap<u32, u64> = parts.map.iter().map(|&(ip, offset)| (offset, ip)).collect();
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(false);
    formatter.options_mut().set_rip_relative_addresses(false);
    formatter.options_mut().set_branch_leading_zeros(false);
    let mut line = String::new();
    for instruction in Decoder::new(64, &parts.code, DecoderOptions::NONE) {
        let offset = instruction.ip();
        if let Some(&ip) = origin.get(&(offset as u32)) {
            let mut bytes = [0; 15];
            let length = source.read_code(ip, &mut bytes);
            let mut guest = Instruction::default();
            Decoder::with_ip(64, &bytes[..length], ip, DecoderOptions::NONE).decode_out(&mut guest);
            line.clear();
            formatter.format(&guest, &mut line);
            writeln!(text, "{ip:x}  {line}")?;
        }
        line.clear();
        formatter.format(&instruction, &mut line);
        writeln!(text, "                    {offset:5x}  {line}")?;
    }
    Ok(())
}
