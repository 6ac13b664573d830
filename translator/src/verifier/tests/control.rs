//! Jumps, loops and the guards that stand before an instruction.

use super::*;

#[test]
fn jump_target() {
    accepted(|b| {
        let mut label = b.a.create_label();
        b.a.je(label)?;
        b.a.nop()?;
        b.a.set_label(&mut label)?;
        b.a.nop()
    });
    // je into the middle of the mov that follows
    refused(Rule::JumpTarget, bytes(&[0x74, 0x01, 0x48, 0x89, 0xc3]));
    refused(Rule::JumpTarget, bytes(&[0xeb, 0x70])); // jmp far behind the code
    refused(Rule::JumpTarget, bytes(&[0x0f, 0x84, 0, 0, 0, 0x80])); // je far before it
    refused_parts(Rule::JumpTarget, raw(|b| b.a.endbr64()));
}

#[test]
fn polled_loop() {
    let looped = |close: fn(&mut Build, CodeLabel) -> Asm| {
        move |b: &mut Build| {
            let mut top = b.a.create_label();
            let mut done = b.a.create_label();
            b.a.set_label(&mut top)?;
            b.a.dec(rcx)?;
            b.a.je(done)?;
            close(b, top)?;
            b.a.set_label(&mut done)?;
            b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
        }
    };
    accepted(looped(|b, top| b.poll(top)));
    accepted(looped(|b, top| {
        b.a.mov(qword_ptr(rsp + spill(0)), rax)?;
        b.a.lahf()?;
        b.a.seto(al)?;
        b.a.mov(qword_ptr(rsp + spill(1)), rax)?;
        b.poll_test()?;
        b.a.mov(rax, qword_ptr(rsp + spill(1)))?;
        b.a.add(al, 0x7f)?;
        b.a.sahf()?;
        b.a.mov(rax, qword_ptr(rsp + spill(0)))?;
        b.a.jmp(top)
    }));
    refused(Rule::Loop, looped(|b, top| b.a.jmp(top)));
    refused(
        Rule::Loop,
        looped(|b, top| {
            b.a.jne(top)?;
            b.a.nop()
        }),
    );
    // Something else between the poll and the jump.
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.poll_test()?;
            b.a.nop()?;
            b.a.jmp(top)
        }),
    );
    // The poll is jumped into behind its test.
    refused(Rule::Frame, |b| {
        let (mut top, mut inside) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.dec(rcx)?;
        b.a.je(inside)?;
        b.poll_test()?;
        b.a.set_label(&mut inside)?;
        b.a.jmp(top)
    });
    // A poll whose exits go on.
    refused(Rule::Loop, |b| {
        let (mut top, mut on) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        b.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
        b.a.mov(r9d, dword_ptr(r9))?;
        b.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
        b.a.jne(on)?;
        b.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
        b.a.cmp(word_ptr(r9), 0)?;
        b.a.jne(on)?;
        b.a.sub(dword_ptr(rsp + frame::BUDGET), 1000)?;
        b.a.js(on)?;
        b.a.jmp(top)?;
        b.a.set_label(&mut on)?;
        b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
    });
    // The poll tests another word than the one it was given.
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.a.mov(r9, qword_ptr(rsp + frame::POLL_FLAGS))?;
            b.a.mov(r9d, dword_ptr(r9 + 8))?;
            b.a.test(dword_ptr(rsp + frame::POLL_MASK), r9d)?;
            b.jne_poll()?;
            b.a.mov(r9, qword_ptr(rsp + frame::POLL_SOFTIRQ))?;
            b.a.cmp(word_ptr(r9), 0)?;
            b.jne_poll()?;
            b.take_off(WORK_LIMIT)?;
            b.a.jmp(top)
        }),
    );
    // Nothing is taken off, it does not matter, or some is put back.
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.work_test()?;
            b.a.jmp(top)
        }),
    );
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.work_test()?;
            b.a.sub(dword_ptr(rsp + frame::BUDGET), 1000)?;
            b.a.je(b.poll)?;
            b.a.jmp(top)
        }),
    );
    refused(
        Rule::Frame,
        looped(|b, top| {
            b.poll_test()?;
            b.a.add(dword_ptr(rsp + frame::BUDGET), 1000)?;
            b.a.jmp(top)
        }),
    );
}

#[test]
fn a_jump_to_itself_is_a_loop() {
    refused(Rule::Loop, bytes(&[0xeb, 0xfe]));
}

#[test]
fn lock() {
    let guarded = |prepare: fn(&mut Build) -> Asm, access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(r9)?;
            prepare(b)?;
            b.ja_guard()?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    let prepare = |b: &mut Build| {
        b.a.mov(r10d, r9d)?;
        b.a.and(r10d, 63)?;
        b.a.cmp(r10d, 56)
    };
    accepted(guarded(prepare, |a| a.lock().add(qword_ptr(r9), rax)));
    accepted(guarded(prepare, |a| a.xchg(qword_ptr(r9), rax)));
    accepted(guarded(prepare, |a| a.lock().cmpxchg(qword_ptr(r9), rcx)));
    // Wider than was checked for; with a displacement; through another register.
    refused(Rule::Lock, guarded(prepare, |a| a.lock().cmpxchg16b(xmmword_ptr(r9))));
    refused(Rule::Lock, guarded(prepare, |a| a.lock().add(qword_ptr(r9 + 1), rax)));
    refused(
        Rule::Lock,
        guarded(
            |b| {
                b.confine(r8)?;
                b.a.mov(r10d, r9d)?;
                b.a.and(r10d, 63)?;
                b.a.cmp(r10d, 56)
            },
            |a| a.lock().add(qword_ptr(r8), rax),
        ),
    );
    refused(
        Rule::Lock,
        guarded(
            |b| {
                b.a.mov(r10d, r9d)?;
                b.a.and(r10d, 31)?;
                b.a.cmp(r10d, 56)
            },
            |a| a.lock().add(qword_ptr(r9), rax),
        ),
    );
    let unguarded = |access: fn(&mut CodeAssembler) -> Asm| {
        move |b: &mut Build| {
            b.confine(r9)?;
            b.faulting()?;
            access(&mut b.a)
        }
    };
    refused(Rule::Lock, unguarded(|a| a.lock().inc(dword_ptr(r9))));
    refused(Rule::Lock, unguarded(|a| a.xchg(byte_ptr(r9), al)));
    accepted(unguarded(|a| a.inc(dword_ptr(r9))));
    // The guard is jumped over.
    refused(Rule::Lock, |b| {
        let mut inside = b.a.create_label();
        b.confine(r9)?;
        b.a.mov(r10d, r9d)?;
        b.a.je(inside)?;
        b.a.mov(r10d, r9d)?;
        b.a.and(r10d, 63)?;
        b.a.set_label(&mut inside)?;
        b.a.cmp(r10d, 56)?;
        b.ja_guard()?;
        b.faulting()?;
        b.a.lock().add(qword_ptr(r9), rax)
    });
}

#[test]
fn rep() {
    let filled = |bound: fn(&mut Build) -> Asm| {
        move |b: &mut Build| {
            b.confine(rdi)?;
            bound(b)?;
            b.faulting()?;
            b.a.rep().stosb()
        }
    };
    accepted(filled(|b| {
        b.a.cmp(rcx, frame::REP_LIMIT)?;
        b.ja_guard()
    }));
    refused(Rule::Rep, filled(|_| Ok(())));
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, frame::REP_LIMIT + 1)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, -1)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(ecx, frame::REP_LIMIT)?;
            b.ja_guard()
        }),
    );
    refused(
        Rule::Rep,
        filled(|b| {
            b.a.cmp(rcx, frame::REP_LIMIT)?;
            b.jc_guard()
        }),
    );
    refused(Rule::Rep, |b| {
        b.confine(rsi)?;
        b.confine(rdi)?;
        b.faulting()?;
        b.a.repne().cmpsb()
    });
}

#[test]
fn work_between_polls_is_bounded() {
    // Behind the entry: the branch that ends the build's body leaves.
    let straight = |count: u32| move |b: &mut Build| (0..count).try_for_each(|_| b.a.inc(rbx));
    accepted(straight(WORK_ROOM));
    refused(Rule::Work, straight(frame::WORK_LIMIT));
    // Each repetition is one.
    let filled = |count: u32| {
        move |b: &mut Build| {
            for _ in 0..count {
                b.confine(rdi)?;
                b.a.cmp(rcx, frame::REP_LIMIT)?;
                b.ja_guard()?;
                b.faulting()?;
                b.a.rep().stosb()?;
            }
            Ok(())
        }
    };
    let limit = frame::WORK_LIMIT / frame::REP_LIMIT.unsigned_abs();
    accepted(filled(limit - 1));
    refused(Rule::Work, filled(limit));
    // A poll begins a new stretch, wherever it leads.
    let looped = |count: u32| {
        move |b: &mut Build| {
            let (mut top, mut done) = (b.a.create_label(), b.a.create_label());
            straight(WORK_ROOM / 2)(b)?;
            b.a.set_label(&mut top)?;
            b.a.dec(rcx)?;
            b.a.je(done)?;
            straight(count)(b)?;
            b.poll(top)?;
            b.a.set_label(&mut done)?;
            b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))?;
            straight(WORK_ROOM / 2 - 64)(b)
        }
    };
    accepted(looped(WORK_ROOM / 2 - 64));
    refused(Rule::Work, looped(frame::WORK_LIMIT));
}

/// Instructions that leave room for what the build adds.
const WORK_ROOM: u32 = frame::WORK_LIMIT - 64;

/// A loop of `count` instructions whose poll takes off `work`.
fn counted(count: usize, work: u32) -> Parts {
    parts(|b| {
        let (mut top, mut done) = (b.a.create_label(), b.a.create_label());
        b.a.set_label(&mut top)?;
        for _ in 0..count {
            b.a.dec(rcx)?;
        }
        b.a.je(done)?;
        b.work_test()?;
        b.take_off(work)?;
        b.a.jmp(top)?;
        b.a.set_label(&mut done)?;
        b.a.mov(r9, qword_ptr(rsp + frame::USER_R11))
    })
}

#[test]
fn polls_take_off_what_was_executed() {
    // endbr64 and r11, the loop, je, the poll's nine, jmp. Too many for an 8-bit operand,
    // which would be no poll.
    let path = |count: u32| 2 + count + 1 + 9 + 1;
    for count in [200, 1000] {
        accepted_parts(counted(count as usize, path(count)));
        accepted_parts(counted(count as usize, i32::MAX as u32));
        refused_parts(Rule::Work, counted(count as usize, path(count) - 1));
        refused_parts(Rule::Work, counted(count as usize, 130));
        refused_parts(Rule::Frame, counted(count as usize, 1));
        // It would put something back.
        refused_parts(Rule::Work, counted(count as usize, 0x8000_0000));
    }
}

#[test]
fn a_fragment_says_how_long_its_ways_are() {
    // Through the poll and out.
    let longest = 2 + 200 + 1 + 9 + 3;
    accepted_parts(Parts { work: longest, ..counted(200, longest) });
    refused_parts(Rule::Work, Parts { work: longest - 1, ..counted(200, longest) });
}
