//! The instructions a fragment may contain, and which of them can fault
//! without touching memory.
//!
//! An own list, independent of the translator's: what is not named here is
//! refused, whatever the emitter believes. Names alone do not make an
//! instruction harmless; `operands.rs` restricts its operands.

use iced_x86::{Code, FlowControl, Mnemonic as M};

/// Whether instructions of `code` may appear in a fragment at all.
///
/// Stops: privileged instructions, changes of segments, flags as a whole,
/// stacks, control flow other than direct jumps, and state that the kernel
/// owns (x87 and MMX record kernel instruction pointers; XSAVE and the FS/GS
/// base are the kernel's to check). `ldmxcsr` is the user's to execute: what
/// it unmasks only instructions with fixups can raise.
pub(super) fn allowed(code: Code) -> bool {
    let mnemonic = code.mnemonic();
    // Belt and braces: whatever the lists below say.
    let flows = match code.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
            true
        }
        FlowControl::Interrupt => mnemonic == M::Int3,
        _ => false,
    };
    if !flows
        || code.is_privileged()
        || code.is_stack_instruction()
        || code.is_save_restore_instruction()
    {
        return false;
    }
    if code.is_string_instruction() {
        return string(mnemonic);
    }
    matches!(mnemonic, M::Jmp | M::Jrcxz | M::Endbr64 | M::Int3)
        || code.is_jcc_short_or_near()
        || integer(mnemonic)
        || other(mnemonic)
        || raises(code)
        || vector(mnemonic)
}

/// Whether instructions of `code` can raise #DE or #XM by their operands'
/// values. In ring 0 these are fatal without a fixup.
pub(super) fn raises(code: Code) -> bool {
    // `cmpsd` is also a string instruction.
    let mnemonic = code.mnemonic();
    matches!(mnemonic, M::Div | M::Idiv) || (!code.is_string_instruction() && float(mnemonic))
}

/// A hint: names memory but neither faults nor reads it into a register.
pub(super) fn prefetch(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchnta | M::Prefetchw
    )
}

#[rustfmt::skip]
fn string(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq |
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq |
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq
    )
}

#[rustfmt::skip]
fn integer(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Adc | M::Adcx | M::Add | M::Adox | M::And | M::Andn | M::Bextr | M::Blsi |
        M::Blsmsk | M::Blsr | M::Bsf | M::Bsr | M::Bswap | M::Bt | M::Btc | M::Btr | M::Bts
        | M::Bzhi | M::Cbw | M::Cdq | M::Cdqe | M::Clc | M::Cmc | M::Cmova | M::Cmovae |
        M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge | M::Cmovl | M::Cmovle |
        M::Cmovne | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo | M::Cmovp | M::Cmovs |
        M::Cmp | M::Cmpxchg | M::Cmpxchg16b | M::Cmpxchg8b | M::Cqo | M::Crc32 | M::Cwd |
        M::Cwde | M::Dec | M::Imul | M::Inc | M::Lahf | M::Lea | M::Mov | M::Movbe |
        M::Movsx | M::Movsxd | M::Movzx | M::Mul | M::Mulx | M::Neg | M::Not | M::Or |
        M::Pdep | M::Pext | M::Popcnt | M::Rcl | M::Rcr | M::Rol | M::Ror | M::Rorx |
        M::Sahf | M::Sal | M::Sar | M::Sarx | M::Sbb | M::Seta | M::Setae | M::Setb |
        M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl | M::Setle | M::Setne | M::Setno |
        M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets | M::Shl | M::Shld | M::Shlx |
        M::Shr | M::Shrd | M::Shrx | M::Stc | M::Sub | M::Test | M::Tzcnt | M::Lzcnt |
        M::Xadd | M::Xchg | M::Xor | M::Cld
    )
}

#[rustfmt::skip]
fn other(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Clflush | M::Clflushopt | M::Clwb | M::Ldmxcsr | M::Lfence | M::Mfence |
        M::Movdiri | M::Nop | M::Pause | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 |
        M::Prefetcht2 | M::Prefetchw | M::Rdfsbase | M::Rdpid | M::Rdrand | M::Rdseed |
        M::Rdtsc | M::Rdtscp | M::Sfence | M::Vldmxcsr | M::Xtest
    )
}

/// SSE and AVX arithmetic that can raise a SIMD floating-point exception.
#[rustfmt::skip]
fn float(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Addpd | M::Addps | M::Addsd | M::Addss | M::Addsubpd | M::Addsubps | M::Cmppd |
        M::Cmpps | M::Cmpsd | M::Cmpss | M::Comisd | M::Comiss | M::Cvtdq2pd | M::Cvtdq2ps |
        M::Cvtpd2dq | M::Cvtpd2ps | M::Cvtps2dq | M::Cvtps2pd | M::Cvtsd2si | M::Cvtsd2ss |
        M::Cvtsi2sd | M::Cvtsi2ss | M::Cvtss2sd | M::Cvtss2si | M::Cvttpd2dq | M::Cvttps2dq
        | M::Cvttsd2si | M::Cvttss2si | M::Divpd | M::Divps | M::Divsd | M::Divss | M::Dppd
        | M::Dpps | M::Haddpd | M::Haddps | M::Hsubpd | M::Hsubps | M::Maxpd | M::Maxps |
        M::Maxsd | M::Maxss | M::Minpd | M::Minps | M::Minsd | M::Minss | M::Mulpd |
        M::Mulps | M::Mulsd | M::Mulss | M::Roundpd | M::Roundps | M::Roundsd | M::Roundss |
        M::Sqrtpd | M::Sqrtps | M::Sqrtsd | M::Sqrtss | M::Subpd | M::Subps | M::Subsd |
        M::Subss | M::Ucomisd | M::Ucomiss | M::Vaddpd | M::Vaddps | M::Vaddsd | M::Vaddss |
        M::Vaddsubpd | M::Vaddsubps | M::Vcmppd | M::Vcmpps | M::Vcmpsd | M::Vcmpss |
        M::Vcomisd | M::Vcomiss | M::Vcvtdq2pd | M::Vcvtdq2ps | M::Vcvtpd2dq | M::Vcvtpd2ps
        | M::Vcvtpd2qq | M::Vcvtpd2udq | M::Vcvtpd2uqq | M::Vcvtph2ps | M::Vcvtps2dq |
        M::Vcvtps2pd | M::Vcvtps2ph | M::Vcvtps2qq | M::Vcvtps2udq | M::Vcvtps2uqq |
        M::Vcvtqq2pd | M::Vcvtqq2ps | M::Vcvtsd2si | M::Vcvtsd2ss | M::Vcvtsd2usi |
        M::Vcvtsi2sd | M::Vcvtsi2ss | M::Vcvtss2sd | M::Vcvtss2si | M::Vcvtss2usi |
        M::Vcvttpd2dq | M::Vcvttpd2qq | M::Vcvttpd2udq | M::Vcvttpd2uqq | M::Vcvttps2dq |
        M::Vcvttps2qq | M::Vcvttps2udq | M::Vcvttps2uqq | M::Vcvttsd2si | M::Vcvttsd2usi |
        M::Vcvttss2si | M::Vcvttss2usi | M::Vcvtudq2pd | M::Vcvtudq2ps | M::Vcvtuqq2pd |
        M::Vcvtuqq2ps | M::Vcvtusi2sd | M::Vcvtusi2ss | M::Vdivpd | M::Vdivps | M::Vdivsd |
        M::Vdivss | M::Vdppd | M::Vdpps | M::Vfixupimmpd | M::Vfixupimmps | M::Vfixupimmsd |
        M::Vfixupimmss | M::Vfmadd132pd | M::Vfmadd132ps | M::Vfmadd132sd | M::Vfmadd132ss |
        M::Vfmadd213pd | M::Vfmadd213ps | M::Vfmadd213sd | M::Vfmadd213ss | M::Vfmadd231pd |
        M::Vfmadd231ps | M::Vfmadd231sd | M::Vfmadd231ss | M::Vfmaddsub132pd |
        M::Vfmaddsub132ps | M::Vfmaddsub213pd | M::Vfmaddsub213ps | M::Vfmaddsub231pd |
        M::Vfmaddsub231ps | M::Vfmsub132pd | M::Vfmsub132ps | M::Vfmsub132sd |
        M::Vfmsub132ss | M::Vfmsub213pd | M::Vfmsub213ps | M::Vfmsub213sd | M::Vfmsub213ss |
        M::Vfmsub231pd | M::Vfmsub231ps | M::Vfmsub231sd | M::Vfmsub231ss |
        M::Vfmsubadd132pd | M::Vfmsubadd132ps | M::Vfmsubadd213pd | M::Vfmsubadd213ps |
        M::Vfmsubadd231pd | M::Vfmsubadd231ps | M::Vfnmadd132pd | M::Vfnmadd132ps |
        M::Vfnmadd132sd | M::Vfnmadd132ss | M::Vfnmadd213pd | M::Vfnmadd213ps |
        M::Vfnmadd213sd | M::Vfnmadd213ss | M::Vfnmadd231pd | M::Vfnmadd231ps |
        M::Vfnmadd231sd | M::Vfnmadd231ss | M::Vfnmsub132pd | M::Vfnmsub132ps |
        M::Vfnmsub132sd | M::Vfnmsub132ss | M::Vfnmsub213pd | M::Vfnmsub213ps |
        M::Vfnmsub213sd | M::Vfnmsub213ss | M::Vfnmsub231pd | M::Vfnmsub231ps |
        M::Vfnmsub231sd | M::Vfnmsub231ss | M::Vgetexppd | M::Vgetexpps | M::Vgetexpsd |
        M::Vgetexpss | M::Vgetmantpd | M::Vgetmantps | M::Vgetmantsd | M::Vgetmantss |
        M::Vhaddpd | M::Vhaddps | M::Vhsubpd | M::Vhsubps | M::Vmaxpd | M::Vmaxps |
        M::Vmaxsd | M::Vmaxss | M::Vminpd | M::Vminps | M::Vminsd | M::Vminss | M::Vmulpd |
        M::Vmulps | M::Vmulsd | M::Vmulss | M::Vrangepd | M::Vrangeps | M::Vrangesd |
        M::Vrangess | M::Vreducepd | M::Vreduceps | M::Vreducesd | M::Vreducess |
        M::Vrndscalepd | M::Vrndscaleps | M::Vrndscalesd | M::Vrndscaless | M::Vroundpd |
        M::Vroundps | M::Vroundsd | M::Vroundss | M::Vscalefpd | M::Vscalefps | M::Vscalefsd
        | M::Vscalefss | M::Vsqrtpd | M::Vsqrtps | M::Vsqrtsd | M::Vsqrtss | M::Vsubpd |
        M::Vsubps | M::Vsubsd | M::Vsubss | M::Vucomisd | M::Vucomiss
    )
}

/// SSE, AVX and AVX-512 that cannot: moves, integers, logic, masks. Without
/// gathers and scatters, whose addresses are data, and without moves masked
/// by a vector (`maskmov`). What a mask register masks, compressing stores
/// and expanding loads too, stays inside the operand.
#[rustfmt::skip]
fn vector(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Aesdec | M::Aesdeclast | M::Aesenc | M::Aesenclast | M::Aesimc |
        M::Aeskeygenassist | M::Andnpd | M::Andnps | M::Andpd | M::Andps | M::Blendpd |
        M::Blendps | M::Blendvpd | M::Blendvps | M::Extractps | M::Gf2p8affineinvqb |
        M::Gf2p8affineqb | M::Gf2p8mulb | M::Insertps | M::Kaddb | M::Kaddd | M::Kaddq |
        M::Kaddw | M::Kandb | M::Kandd | M::Kandnb | M::Kandnd | M::Kandnq | M::Kandnw |
        M::Kandq | M::Kandw | M::Kmovb | M::Kmovd | M::Kmovq | M::Kmovw | M::Knotb |
        M::Knotd | M::Knotq | M::Knotw | M::Korb | M::Kord | M::Korq | M::Kortestb |
        M::Kortestd | M::Kortestq | M::Kortestw | M::Korw | M::Kshiftlb | M::Kshiftld |
        M::Kshiftlq | M::Kshiftlw | M::Kshiftrb | M::Kshiftrd | M::Kshiftrq | M::Kshiftrw |
        M::Ktestb | M::Ktestd | M::Ktestq | M::Ktestw | M::Kunpckbw | M::Kunpckdq |
        M::Kunpckwd | M::Kxnorb | M::Kxnord | M::Kxnorq | M::Kxnorw | M::Kxorb | M::Kxord |
        M::Kxorq | M::Kxorw | M::Lddqu | M::Movapd | M::Movaps | M::Movd | M::Movddup |
        M::Movdqa | M::Movdqu | M::Movhlps | M::Movhpd | M::Movhps | M::Movlhps | M::Movlpd
        | M::Movlps | M::Movmskpd | M::Movmskps | M::Movntdq | M::Movntdqa | M::Movnti |
        M::Movntpd | M::Movntps | M::Movq | M::Movsd | M::Movshdup | M::Movsldup | M::Movss
        | M::Movupd | M::Movups | M::Mpsadbw | M::Orpd | M::Orps | M::Pabsb | M::Pabsd |
        M::Pabsw | M::Packssdw | M::Packsswb | M::Packusdw | M::Packuswb | M::Paddb |
        M::Paddd | M::Paddq | M::Paddsb | M::Paddsw | M::Paddusb | M::Paddusw | M::Paddw |
        M::Palignr | M::Pand | M::Pandn | M::Pavgb | M::Pavgw | M::Pblendvb | M::Pblendw |
        M::Pclmulqdq | M::Pcmpeqb | M::Pcmpeqd | M::Pcmpeqq | M::Pcmpeqw | M::Pcmpestri |
        M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpgtb | M::Pcmpgtd |
        M::Pcmpgtq | M::Pcmpgtw | M::Pcmpistri | M::Pcmpistrm | M::Pextrb | M::Pextrd |
        M::Pextrq | M::Pextrw | M::Phaddd | M::Phaddsw | M::Phaddw | M::Phminposuw |
        M::Phsubd | M::Phsubsw | M::Phsubw | M::Pinsrb | M::Pinsrd | M::Pinsrq | M::Pinsrw |
        M::Pmaddubsw | M::Pmaddwd | M::Pmaxsb | M::Pmaxsd | M::Pmaxsw | M::Pmaxub |
        M::Pmaxud | M::Pmaxuw | M::Pminsb | M::Pminsd | M::Pminsw | M::Pminub | M::Pminud |
        M::Pminuw | M::Pmovmskb | M::Pmovsxbd | M::Pmovsxbq | M::Pmovsxbw | M::Pmovsxdq |
        M::Pmovsxwd | M::Pmovsxwq | M::Pmovzxbd | M::Pmovzxbq | M::Pmovzxbw | M::Pmovzxdq |
        M::Pmovzxwd | M::Pmovzxwq | M::Pmuldq | M::Pmulhrsw | M::Pmulhuw | M::Pmulhw |
        M::Pmulld | M::Pmullw | M::Pmuludq | M::Por | M::Psadbw | M::Pshufb | M::Pshufd |
        M::Pshufhw | M::Pshuflw | M::Psignb | M::Psignd | M::Psignw | M::Pslld | M::Pslldq |
        M::Psllq | M::Psllw | M::Psrad | M::Psraw | M::Psrld | M::Psrldq | M::Psrlq |
        M::Psrlw | M::Psubb | M::Psubd | M::Psubq | M::Psubsb | M::Psubsw | M::Psubusb |
        M::Psubusw | M::Psubw | M::Ptest | M::Punpckhbw | M::Punpckhdq | M::Punpckhqdq |
        M::Punpckhwd | M::Punpcklbw | M::Punpckldq | M::Punpcklqdq | M::Punpcklwd | M::Pxor
        | M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss | M::Sha1msg1 | M::Sha1msg2 |
        M::Sha1nexte | M::Sha1rnds4 | M::Sha256msg1 | M::Sha256msg2 | M::Sha256rnds2 |
        M::Shufpd | M::Shufps | M::Stmxcsr | M::Unpckhpd | M::Unpckhps | M::Unpcklpd |
        M::Unpcklps | M::Vaesdec | M::Vaesdeclast | M::Vaesenc | M::Vaesenclast | M::Vaesimc
        | M::Vaeskeygenassist | M::Valignd | M::Valignq | M::Vandnpd | M::Vandnps |
        M::Vandpd | M::Vandps | M::Vblendmpd | M::Vblendmps | M::Vblendpd | M::Vblendps |
        M::Vblendvpd | M::Vblendvps | M::Vbroadcastf128 | M::Vbroadcastf32x2 |
        M::Vbroadcastf32x4 | M::Vbroadcastf32x8 | M::Vbroadcastf64x2 | M::Vbroadcastf64x4 |
        M::Vbroadcasti128 | M::Vbroadcasti32x2 | M::Vbroadcasti32x4 | M::Vbroadcasti32x8 |
        M::Vbroadcasti64x2 | M::Vbroadcasti64x4 | M::Vbroadcastsd | M::Vbroadcastss |
        M::Vcompresspd | M::Vcompressps | M::Vdbpsadbw | M::Vexpandpd | M::Vexpandps |
        M::Vextractf128 | M::Vextractf32x4 | M::Vextractf32x8 | M::Vextractf64x2 |
        M::Vextractf64x4 | M::Vextracti128 | M::Vextracti32x4 | M::Vextracti32x8 |
        M::Vextracti64x2 | M::Vextracti64x4 | M::Vextractps | M::Vfpclasspd | M::Vfpclassps
        | M::Vfpclasssd | M::Vfpclassss | M::Vgf2p8affineinvqb | M::Vgf2p8affineqb |
        M::Vgf2p8mulb | M::Vinsertf128 | M::Vinsertf32x4 | M::Vinsertf32x8 | M::Vinsertf64x2
        | M::Vinsertf64x4 | M::Vinserti128 | M::Vinserti32x4 | M::Vinserti32x8 |
        M::Vinserti64x2 | M::Vinserti64x4 | M::Vinsertps | M::Vlddqu | M::Vmovapd |
        M::Vmovaps | M::Vmovd | M::Vmovddup | M::Vmovdqa | M::Vmovdqa32 | M::Vmovdqa64 |
        M::Vmovdqu | M::Vmovdqu16 | M::Vmovdqu32 | M::Vmovdqu64 | M::Vmovdqu8 | M::Vmovhlps
        | M::Vmovhpd | M::Vmovhps | M::Vmovlhps | M::Vmovlpd | M::Vmovlps | M::Vmovmskpd |
        M::Vmovmskps | M::Vmovntdq | M::Vmovntdqa | M::Vmovntpd | M::Vmovntps | M::Vmovq |
        M::Vmovsd | M::Vmovshdup | M::Vmovsldup | M::Vmovss | M::Vmovupd | M::Vmovups |
        M::Vmpsadbw | M::Vorpd | M::Vorps | M::Vpabsb | M::Vpabsd | M::Vpabsq | M::Vpabsw |
        M::Vpackssdw | M::Vpacksswb | M::Vpackusdw | M::Vpackuswb | M::Vpaddb | M::Vpaddd |
        M::Vpaddq | M::Vpaddsb | M::Vpaddsw | M::Vpaddusb | M::Vpaddusw | M::Vpaddw |
        M::Vpalignr | M::Vpand | M::Vpandd | M::Vpandn | M::Vpandnd | M::Vpandnq | M::Vpandq
        | M::Vpavgb | M::Vpavgw | M::Vpblendd | M::Vpblendmb | M::Vpblendmd | M::Vpblendmq |
        M::Vpblendmw | M::Vpblendvb | M::Vpblendw | M::Vpbroadcastb | M::Vpbroadcastd |
        M::Vpbroadcastmb2q | M::Vpbroadcastmw2d | M::Vpbroadcastq | M::Vpbroadcastw |
        M::Vpclmulqdq | M::Vpcmpb | M::Vpcmpd | M::Vpcmpeqb | M::Vpcmpeqd | M::Vpcmpeqq |
        M::Vpcmpeqw | M::Vpcmpestri | M::Vpcmpestri64 | M::Vpcmpestrm | M::Vpcmpestrm64 |
        M::Vpcmpgtb | M::Vpcmpgtd | M::Vpcmpgtq | M::Vpcmpgtw | M::Vpcmpistri |
        M::Vpcmpistrm | M::Vpcmpq | M::Vpcmpub | M::Vpcmpud | M::Vpcmpuq | M::Vpcmpuw |
        M::Vpcmpw | M::Vpcompressb | M::Vpcompressd | M::Vpcompressq | M::Vpcompressw |
        M::Vpconflictd | M::Vpconflictq | M::Vpdpbusd | M::Vpdpbusds | M::Vpdpwssd |
        M::Vpdpwssds | M::Vperm2f128 | M::Vperm2i128 | M::Vpermb | M::Vpermd | M::Vpermi2b |
        M::Vpermi2d | M::Vpermi2pd | M::Vpermi2ps | M::Vpermi2q | M::Vpermi2w | M::Vpermilpd
        | M::Vpermilps | M::Vpermpd | M::Vpermps | M::Vpermq | M::Vpermt2b | M::Vpermt2d |
        M::Vpermt2pd | M::Vpermt2ps | M::Vpermt2q | M::Vpermt2w | M::Vpermw | M::Vpexpandb |
        M::Vpexpandd | M::Vpexpandq | M::Vpexpandw | M::Vpextrb | M::Vpextrd | M::Vpextrq |
        M::Vpextrw | M::Vphaddd | M::Vphaddsw | M::Vphaddw | M::Vphminposuw | M::Vphsubd |
        M::Vphsubsw | M::Vphsubw | M::Vpinsrb | M::Vpinsrd | M::Vpinsrq | M::Vpinsrw |
        M::Vplzcntd | M::Vplzcntq | M::Vpmadd52huq | M::Vpmadd52luq | M::Vpmaddubsw |
        M::Vpmaddwd | M::Vpmaxsb | M::Vpmaxsd | M::Vpmaxsq | M::Vpmaxsw | M::Vpmaxub |
        M::Vpmaxud | M::Vpmaxuq | M::Vpmaxuw | M::Vpminsb | M::Vpminsd | M::Vpminsq |
        M::Vpminsw | M::Vpminub | M::Vpminud | M::Vpminuq | M::Vpminuw | M::Vpmovb2m |
        M::Vpmovd2m | M::Vpmovdb | M::Vpmovdw | M::Vpmovm2b | M::Vpmovm2d | M::Vpmovm2q |
        M::Vpmovm2w | M::Vpmovmskb | M::Vpmovq2m | M::Vpmovqb | M::Vpmovqd | M::Vpmovqw |
        M::Vpmovsdb | M::Vpmovsdw | M::Vpmovsqb | M::Vpmovsqd | M::Vpmovsqw | M::Vpmovswb |
        M::Vpmovsxbd | M::Vpmovsxbq | M::Vpmovsxbw | M::Vpmovsxdq | M::Vpmovsxwd |
        M::Vpmovsxwq | M::Vpmovusdb | M::Vpmovusdw | M::Vpmovusqb | M::Vpmovusqd |
        M::Vpmovusqw | M::Vpmovuswb | M::Vpmovw2m | M::Vpmovwb | M::Vpmovzxbd | M::Vpmovzxbq
        | M::Vpmovzxbw | M::Vpmovzxdq | M::Vpmovzxwd | M::Vpmovzxwq | M::Vpmuldq |
        M::Vpmulhrsw | M::Vpmulhuw | M::Vpmulhw | M::Vpmulld | M::Vpmullq | M::Vpmullw |
        M::Vpmultishiftqb | M::Vpmuludq | M::Vpopcntb | M::Vpopcntd | M::Vpopcntq |
        M::Vpopcntw | M::Vpor | M::Vpord | M::Vporq | M::Vprold | M::Vprolq | M::Vprolvd |
        M::Vprolvq | M::Vprord | M::Vprorq | M::Vprorvd | M::Vprorvq | M::Vpsadbw |
        M::Vpshldd | M::Vpshldq | M::Vpshldvd | M::Vpshldvq | M::Vpshldvw | M::Vpshldw |
        M::Vpshrdd | M::Vpshrdq | M::Vpshrdvd | M::Vpshrdvq | M::Vpshrdvw | M::Vpshrdw |
        M::Vpshufb | M::Vpshufbitqmb | M::Vpshufd | M::Vpshufhw | M::Vpshuflw | M::Vpsignb |
        M::Vpsignd | M::Vpsignw | M::Vpslld | M::Vpslldq | M::Vpsllq | M::Vpsllvd |
        M::Vpsllvq | M::Vpsllvw | M::Vpsllw | M::Vpsrad | M::Vpsraq | M::Vpsravd |
        M::Vpsravq | M::Vpsravw | M::Vpsraw | M::Vpsrld | M::Vpsrldq | M::Vpsrlq |
        M::Vpsrlvd | M::Vpsrlvq | M::Vpsrlvw | M::Vpsrlw | M::Vpsubb | M::Vpsubd | M::Vpsubq
        | M::Vpsubsb | M::Vpsubsw | M::Vpsubusb | M::Vpsubusw | M::Vpsubw | M::Vpternlogd |
        M::Vpternlogq | M::Vptest | M::Vptestmb | M::Vptestmd | M::Vptestmq | M::Vptestmw |
        M::Vptestnmb | M::Vptestnmd | M::Vptestnmq | M::Vptestnmw | M::Vpunpckhbw |
        M::Vpunpckhdq | M::Vpunpckhqdq | M::Vpunpckhwd | M::Vpunpcklbw | M::Vpunpckldq |
        M::Vpunpcklqdq | M::Vpunpcklwd | M::Vpxor | M::Vpxord | M::Vpxorq | M::Vrcp14pd |
        M::Vrcp14ps | M::Vrcp14sd | M::Vrcp14ss | M::Vrcpps | M::Vrcpss | M::Vrsqrt14pd |
        M::Vrsqrt14ps | M::Vrsqrt14sd | M::Vrsqrt14ss | M::Vrsqrtps | M::Vrsqrtss |
        M::Vshuff32x4 | M::Vshuff64x2 | M::Vshufi32x4 | M::Vshufi64x2 | M::Vshufpd |
        M::Vshufps | M::Vstmxcsr | M::Vtestpd | M::Vtestps | M::Vunpckhpd | M::Vunpckhps |
        M::Vunpcklpd | M::Vunpcklps | M::Vxorpd | M::Vxorps | M::Vzeroall | M::Vzeroupper |
        M::Xorpd | M::Xorps
    )
}
