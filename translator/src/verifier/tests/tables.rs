//! Exits, relocations and sources.

use super::*;

#[test]
fn relocation() {
    let good = || parts(|_| Ok(()));
    accepted_parts(good());
    let mut bad = good();
    bad.relocations.push(6); // inside the first mov
    refused_parts(Rule::Relocation, bad);
    let mut bad = good();
    bad.relocations.push(bad.relocations[0]);
    refused_parts(Rule::Relocation, bad);
    let mut bad = good();
    bad.relocations[0] = u32::MAX;
    refused_parts(Rule::JumpTarget, bad);
    let mut bad = good();
    bad.relocations.clear();
    refused_parts(Rule::JumpTarget, bad);
}

#[test]
fn exit_id() {
    let leave = |id: Option<u32>, target: bool| {
        raw(move |b| {
            b.a.endbr64()?;
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            if target {
                b.a.mov(qword_ptr(rsp + frame::TARGET), rax)?;
            }
            match id {
                Some(id) => b.leave(id),
                None => b.jump_out(),
            }
        })
    };
    accepted_parts(leave(Some(SYSCALL), false));
    accepted_parts(leave(Some(INDIRECT), true));
    refused_parts(Rule::ExitId, leave(None, false));
    refused_parts(Rule::ExitId, leave(Some(5), false));
    refused_parts(Rule::ExitId, leave(Some(INDIRECT), false));
    // Written on one of two paths only.
    refused_parts(
        Rule::ExitId,
        raw(|b| {
            let mut join = b.a.create_label();
            b.a.endbr64()?;
            b.a.mov(r11, qword_ptr(rsp + frame::USER_R11))?;
            b.a.je(join)?;
            b.a.mov(dword_ptr(rsp + frame::EXIT_ID), SYSCALL)?;
            b.a.set_label(&mut join)?;
            b.jump_out()
        }),
    );
}

#[test]
fn exit_table() {
    let mut bad = parts(|_| Ok(()));
    bad.exits[0].user_ip = 1 << 47;
    refused_parts(Rule::ExitTable, bad);
}

#[test]
fn sources() {
    let with = |sources| Parts { sources, ..parts(|_| Ok(())) };
    accepted_parts(with(vec![0x1000..0x1004, 0x40_1000..0x40_1001]));
    refused_parts(Rule::Sources, with(vec![]));
    refused_parts(Rule::Sources, with(vec![0x1000..0x1004]));
    refused_parts(Rule::Sources, with(vec![0x40_1000..0x40_1001, 0x1000..0x1004]));
    refused_parts(Rule::Sources, with(vec![0x40_0000..0x40_1001, 0x40_1000..0x40_1004]));
    #[allow(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    let reversed = vec![0x40_1000..0x40_0000];
    refused_parts(Rule::Sources, with(reversed));
    refused_parts(Rule::Sources, with(vec![0x40_1000..u64::MAX]));
}
