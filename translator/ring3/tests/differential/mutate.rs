//! Damage to fragments: what an attacker, or a bug, would change.

use crate::edit::Editor;
use crate::rng::Rng;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, MemoryOperand, OpKind, Register};
use ub_translator::fragment::{ExitKind, Parts};
use ub_translator::frame;

/// Codes that differ in their width only.
const WIDTHS: &[(Code, Code)] = &[
    (Code::Mov_r64_rm64, Code::Mov_r32_rm32),
    (Code::Mov_rm64_r64, Code::Mov_rm32_r32),
    (Code::Lea_r64_m, Code::Lea_r32_m),
    (Code::Btr_rm64_imm8, Code::Btr_rm32_imm8),
    (Code::Bts_rm64_imm8, Code::Bts_rm32_imm8),
    (Code::And_rm64_imm8, Code::And_rm32_imm8),
    (Code::Cmp_rm64_imm8, Code::Cmp_rm32_imm8),
    (Code::Cmp_rm64_imm32, Code::Cmp_rm32_imm32),
    (Code::Add_r64_rm64, Code::Add_r32_rm32),
    (Code::Add_rm64_imm8, Code::Add_rm32_imm8),
    (Code::Sub_rm64_imm8, Code::Sub_rm32_imm8),
    (Code::Shl_rm64_imm8, Code::Shl_rm32_imm8),
    (Code::Shr_rm64_imm8, Code::Shr_rm32_imm8),
    (Code::Movzx_r32_rm16, Code::Movsx_r64_rm16),
    (Code::Movsxd_r64_rm32, Code::Mov_r32_rm32),
    (Code::Xor_r32_rm32, Code::Xor_r64_rm64),
    (Code::Dec_rm64, Code::Dec_rm32),
    (Code::Inc_rm64, Code::Inc_rm32),
];

/// Damages `parts` in one to three ways. `None` if nothing came of it.
pub fn mutate(rng: &mut Rng, parts: &Parts) -> Option<Parts> {
    let mut parts = parts.clone();
    for _ in 0..1 + rng.below(3) {
        parts = match rng.below(10) {
            0 | 1 => damage_bytes(rng, parts),
            2 => damage_tables(rng, parts),
            _ => {
                let mut editor = Editor::new(&parts)?;
                damage_code(rng, &mut editor);
                editor.finish()?
            }
        };
    }
    Some(parts)
}

fn damage_bytes(rng: &mut Rng, mut parts: Parts) -> Parts {
    let at = rng.below(parts.code.len());
    match rng.below(4) {
        0 | 1 => parts.code[at] ^= 1 << rng.below(8),
        2 => parts.code[at] = rng.next() as u8,
        _ => parts.code[at] = parts.code[rng.below(parts.code.len())],
    }
    parts
}

fn damage_tables(rng: &mut Rng, mut parts: Parts) -> Parts {
    let starts: Vec<u32> = Decoder::with_ip(64, &parts.code, 0, DecoderOptions::NONE)
        .iter()
        .map(|i| i.ip() as u32)
        .collect();
    match rng.below(7) {
        0 if !parts.fixups.is_empty() => {
            let which = rng.below(parts.fixups.len());
            parts.fixups[which].landing = rng.pick(&starts);
        }
        1 if !parts.fixups.is_empty() => {
            parts.fixups.remove(rng.below(parts.fixups.len()));
        }
        2 if !parts.fixups.is_empty() => {
            let which = rng.below(parts.fixups.len());
            parts.fixups[which].fault = rng.pick(&starts);
            parts.fixups.sort();
        }
        3 if !parts.relocations.is_empty() => {
            let which = rng.below(parts.relocations.len());
            parts.relocations[which] = rng.pick(&starts) + 1;
            parts.relocations.sort_unstable();
        }
        4 => {
            let exit = rng.below(parts.exits.len());
            parts.exits[exit].kind =
                rng.pick(&[ExitKind::Indirect, ExitKind::Fault, ExitKind::Syscall, ExitKind::Poll]);
        }
        5 => {
            let exit = rng.below(parts.exits.len());
            parts.exits[exit].user_ip = rng.pick(&[0, 1 << 47, 0xffff_8880_0000_0000]);
        }
        _ => {
            let (a, b) = (rng.below(parts.exits.len()), rng.below(parts.exits.len()));
            parts.exits.swap(a, b);
        }
    }
    parts
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

fn is_user_access(i: &Instruction) -> bool {
    has_memory(i) && i.memory_base() != Register::RSP && i.code() != Code::Lea_r64_m
}

/// What guards something: masks, comparisons and their jumps.
fn is_guard(i: &Instruction) -> bool {
    matches!(
        i.code(),
        Code::Btr_rm64_imm8
            | Code::And_rm32_imm8
            | Code::And_rm64_imm8
            | Code::Cmp_rm32_imm8
            | Code::Cmp_rm64_imm32
            | Code::Test_rm32_r32
            | Code::Cmp_rm16_imm8
            | Code::Jb_rel8_64
            | Code::Jb_rel32_64
            | Code::Ja_rel8_64
            | Code::Ja_rel32_64
            | Code::Jne_rel8_64
            | Code::Jne_rel32_64
    )
}

fn damage_code(rng: &mut Rng, editor: &mut Editor) {
    let any = rng.below(editor.items.len());
    let one_of = |rng: &mut Rng, from: Vec<usize>| {
        if from.is_empty() { any } else { rng.pick(&from) }
    };
    match rng.below(14) {
        0 | 1 => {
            let guards = editor.find(|item| is_guard(&item.instruction));
            let which = one_of(rng, guards);
            editor.remove(which);
        }
        2 => editor.remove(any),
        3 if any > 0 => editor.items.swap(any - 1, any),
        4 | 5 => change_register(rng, &mut editor.items[any].instruction),
        6 | 7 => {
            let accesses = editor.find(|item| is_user_access(&item.instruction));
            let which = one_of(rng, accesses);
            change_address(rng, &mut editor.items[which].instruction);
        }
        8 => {
            let branches = editor.find(|item| item.instruction.near_branch_target() != 0);
            let (which, to) = (one_of(rng, branches), rng.below(editor.items.len()));
            let to = editor.name_of(to);
            let branch = &mut editor.items[which].instruction;
            if branch.near_branch_target() != 0 {
                branch.set_near_branch64(to);
            }
        }
        9 => change_immediate(rng, &mut editor.items[any].instruction),
        10 => change_width(rng, editor),
        11 => {
            // Something from elsewhere in the fragment.
            let from = editor.items[any].instruction;
            let to = rng.below(editor.items.len());
            editor.insert(to, from);
        }
        12 => {
            let faulting = editor.find(|item| item.landing.is_some());
            let which = one_of(rng, faulting);
            editor.items[which].landing = None;
        }
        _ => {
            let instruction = intruder(rng);
            editor.insert(any, instruction);
        }
    }
}

fn gpr(rng: &mut Rng) -> Register {
    Register::RAX + rng.below(16) as u32
}

fn change_register(rng: &mut Rng, i: &mut Instruction) {
    for n in 0..i.op_count() {
        if i.op_kind(n) == OpKind::Register && rng.chance(60) {
            let register = i.op_register(n);
            let number = rng.below(16) as u32;
            if register.is_gpr64() {
                i.set_op_register(n, Register::RAX + number);
            } else if register.is_gpr32() {
                i.set_op_register(n, Register::EAX + number);
            }
        }
    }
    if has_memory(i) && i.memory_base() != Register::RSP && rng.chance(60) {
        i.set_memory_base(gpr(rng));
    }
}

fn change_address(rng: &mut Rng, i: &mut Instruction) {
    if !has_memory(i) {
        return;
    }
    let displacement = i.memory_displacement64() as i64;
    let change = rng.pick(&[
        8,
        -8,
        4096,
        -4096,
        1 << 20,
        -(1 << 20),
        -(1 << 21),
        1 << 30,
        -(1 << 30),
        i64::from(i32::MIN),
    ]);
    match rng.below(10) {
        0..=2 => {
            let displacement = (displacement + change) as i32;
            i.set_memory_displacement64(i64::from(displacement) as u64);
            i.set_memory_displ_size(8);
        }
        3 => i.set_memory_base(gpr(rng)),
        4 | 8 | 9 => {
            i.set_memory_index(gpr(rng));
            i.set_memory_index_scale(rng.pick(&[1, 2, 4, 8]));
        }
        5 if i.memory_index() != Register::None => {
            i.set_memory_index_scale(rng.pick(&[1, 2, 4, 8]));
        }
        5 => i.set_memory_base(Register::EAX + rng.below(16) as u32),
        6 => i.set_segment_prefix(rng.pick(&[Register::FS, Register::GS])),
        _ => i.set_memory_base(Register::RSP),
    }
}

fn change_immediate(rng: &mut Rng, i: &mut Instruction) {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Immediate8 => i.set_immediate8(rng.pick(&[0, 1, 31, 32, 62, 63, 127, 255])),
            OpKind::Immediate32 => i.set_immediate32(rng.value() as u32),
            OpKind::Immediate64 => i.set_immediate64(rng.pick(&[
                0xffff_8880_0000_0000,
                1 << 47,
                1 << 63,
                0xffff_ffff_ffff_0000,
            ])),
            OpKind::Immediate8to64 => i.set_immediate8to64(i64::from(rng.next() as i8)),
            OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(rng.next() as i8)),
            OpKind::Immediate32to64 => i.set_immediate32to64(i64::from(rng.value() as i32)),
            _ => {}
        }
    }
}

fn change_width(rng: &mut Rng, editor: &mut Editor) {
    let other = |code: Code| {
        WIDTHS.iter().find_map(|&(a, b)| match code {
            _ if code == a => Some(b),
            _ if code == b => Some(a),
            _ => None,
        })
    };
    let fitting = editor.find(|item| other(item.instruction.code()).is_some());
    if fitting.is_empty() {
        return;
    }
    let i = &mut editor.items[rng.pick(&fitting)].instruction;
    let code = other(i.code()).expect("just seen");
    let wide = |kind: Code| format!("{:?}", kind.op_code().op_kind(0)).starts_with("r64");
    for n in 0..i.op_count() {
        if i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr() {
            let number = i.op_register(n).full_register().number() as u32;
            let first = if wide(code) { Register::RAX } else { Register::EAX };
            i.set_op_register(n, first + number);
        } else if i.op_kind(n) == OpKind::Immediate8to64 {
            i.set_op_kind(n, OpKind::Immediate8to32);
        } else if i.op_kind(n) == OpKind::Immediate8to32 {
            i.set_op_kind(n, OpKind::Immediate8to64);
        }
    }
    i.set_code(code);
}

/// An instruction that no emitter would put there.
fn intruder(rng: &mut Rng) -> Instruction {
    let decode = |bytes: &[u8]| Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    let (a, b) = (gpr(rng), gpr(rng));
    let distance = rng.pick(&[-128, -9, -8, 8, 16, 127, 4096, -4096, 1 << 20]);
    let slot = |offset: i32| MemoryOperand::with_base_displ(Register::RSP, i64::from(offset));
    let private = rng.pick(&[frame::POLL_FLAGS, frame::POLL_SOFTIRQ, 0x68, 0x70, -8, -64]);
    let made = match rng.below(16) {
        0..=3 => {
            return decode(rng.pick(&[
                &[0x0f, 0x30][..],               // wrmsr
                &[0xfa],                         // cli
                &[0xfd],                         // std
                &[0xf4],                         // hlt
                &[0xc3],                         // ret
                &[0xff, 0xe0],                   // jmp rax
                &[0xff, 0xd0],                   // call rax
                &[0xff, 0x20],                   // jmp [rax]
                &[0x50],                         // push rax
                &[0x5c],                         // pop rsp
                &[0x9d],                         // popfq
                &[0xcd, 0x80],                   // int 0x80
                &[0x0f, 0x05],                   // syscall
                &[0x0f, 0x01, 0xf8],             // swapgs
                &[0x0f, 0x22, 0xc0],             // mov cr0,rax
                &[0x8e, 0xd8],                   // mov ds,eax
                &[0xf3, 0x48, 0x0f, 0xae, 0xd0], // wrfsbase rax
                &[0x48, 0xcf],                   // iretq
                &[0x65, 0x48, 0x8b, 0x00],       // mov rax,gs:[rax]
                &[0xf3, 0xa4],                   // rep movsb
                &[0xa4],                         // movsb
                &[0xab],                         // stosd
                &[0x0f, 0x0b],                   // ud2
                &[0xd9, 0x30],                   // fnstenv [rax]
                &[0x0f, 0xae, 0x00],             // fxsave [rax]
                &[0x48, 0x8d, 0x05, 0, 0, 0, 0], // lea rax,[rip]
            ]));
        }
        4 => Instruction::with2(Code::Mov_r64_rm64, a, b),
        5 => Instruction::with2(Code::Mov_r64_rm64, a, slot(private)),
        6 => Instruction::with2(Code::Mov_rm64_r64, slot(private), a),
        7 => Instruction::with2(Code::Mov_r64_rm64, a, MemoryOperand::with_base(b)),
        8 => Instruction::with2(Code::Mov_rm64_r64, MemoryOperand::with_base(b), a),
        9 => Instruction::with2(Code::Add_rm64_imm32, a, distance),
        10 => Instruction::with2(
            Code::Lea_r64_m,
            a,
            MemoryOperand::with_base_displ(a, i64::from(distance)),
        ),
        11 => Instruction::with2(
            Code::Lea_r64_m,
            a,
            MemoryOperand::with_base_index_scale(
                a,
                if b == Register::RSP { a } else { b },
                rng.pick(&[1, 2, 4, 8]),
            ),
        ),
        12 => Instruction::with2(Code::Shl_rm64_imm8, a, rng.below(64) as i32),
        13 => Instruction::with2(Code::Sub_r64_rm64, a, b),
        14 => Instruction::with2(Code::Mov_rm64_imm32, slot(frame::TARGET), 0),
        _ => Instruction::with2(Code::Xchg_rm64_r64, a, b),
    };
    made.unwrap_or_else(|_| Instruction::with(Code::Nopd))
}
