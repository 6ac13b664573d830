//! SSE instructions on the allow-list, by mnemonic. Operand kinds are
//! checked by the caller: no MMX registers, no vector index registers.
//!
//! Left out on purpose: see `refused.rs`.

use iced_x86::Mnemonic;
use iced_x86::Mnemonic as M;

/// SSE integer operations; they raise nothing of their own.
pub(super) fn integer(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Aesdec
            | M::Aesdeclast
            | M::Aesenc
            | M::Aesenclast
            | M::Aesimc
            | M::Aeskeygenassist
            | M::Gf2p8affineinvqb
            | M::Gf2p8affineqb
            | M::Gf2p8mulb
            | M::Mpsadbw
            | M::Pabsb
            | M::Pabsd
            | M::Pabsw
            | M::Packssdw
            | M::Packsswb
            | M::Packusdw
            | M::Packuswb
            | M::Paddb
            | M::Paddd
            | M::Paddq
            | M::Paddsb
            | M::Paddsw
            | M::Paddusb
            | M::Paddusw
            | M::Paddw
            | M::Palignr
            | M::Pand
            | M::Pandn
            | M::Pavgb
            | M::Pavgw
            | M::Pblendvb
            | M::Pblendw
            | M::Pclmulqdq
            | M::Pcmpeqb
            | M::Pcmpeqd
            | M::Pcmpeqq
            | M::Pcmpeqw
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpgtb
            | M::Pcmpgtd
            | M::Pcmpgtq
            | M::Pcmpgtw
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pextrb
            | M::Pextrd
            | M::Pextrq
            | M::Pextrw
            | M::Phaddd
            | M::Phaddsw
            | M::Phaddw
            | M::Phminposuw
            | M::Phsubd
            | M::Phsubsw
            | M::Phsubw
            | M::Pinsrb
            | M::Pinsrd
            | M::Pinsrq
            | M::Pinsrw
            | M::Pmaddubsw
            | M::Pmaddwd
            | M::Pmaxsb
            | M::Pmaxsd
            | M::Pmaxsw
            | M::Pmaxub
            | M::Pmaxud
            | M::Pmaxuw
            | M::Pminsb
            | M::Pminsd
            | M::Pminsw
            | M::Pminub
            | M::Pminud
            | M::Pminuw
            | M::Pmovmskb
            | M::Pmovsxbd
            | M::Pmovsxbq
            | M::Pmovsxbw
            | M::Pmovsxdq
            | M::Pmovsxwd
            | M::Pmovsxwq
            | M::Pmovzxbd
            | M::Pmovzxbq
            | M::Pmovzxbw
            | M::Pmovzxdq
            | M::Pmovzxwd
            | M::Pmovzxwq
            | M::Pmuldq
            | M::Pmulhrsw
            | M::Pmulhuw
            | M::Pmulhw
            | M::Pmulld
            | M::Pmullw
            | M::Pmuludq
            | M::Por
            | M::Psadbw
            | M::Pshufb
            | M::Pshufd
            | M::Pshufhw
            | M::Pshuflw
            | M::Psignb
            | M::Psignd
            | M::Psignw
            | M::Pslld
            | M::Pslldq
            | M::Psllq
            | M::Psllw
            | M::Psrad
            | M::Psraw
            | M::Psrld
            | M::Psrldq
            | M::Psrlq
            | M::Psrlw
            | M::Psubb
            | M::Psubd
            | M::Psubq
            | M::Psubsb
            | M::Psubsw
            | M::Psubusb
            | M::Psubusw
            | M::Psubw
            | M::Ptest
            | M::Punpckhbw
            | M::Punpckhdq
            | M::Punpckhqdq
            | M::Punpckhwd
            | M::Punpcklbw
            | M::Punpckldq
            | M::Punpcklqdq
            | M::Punpcklwd
            | M::Pxor
            | M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2
    )
}

/// SSE moves, shuffles and bitwise logic; they raise nothing of their own.
pub(super) fn moves(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Andnpd
            | M::Andnps
            | M::Andpd
            | M::Andps
            | M::Blendpd
            | M::Blendps
            | M::Blendvpd
            | M::Blendvps
            | M::Extractps
            | M::Insertps
            | M::Lddqu
            | M::Movapd
            | M::Movaps
            | M::Movd
            | M::Movddup
            | M::Movdqa
            | M::Movdqu
            | M::Movhlps
            | M::Movhpd
            | M::Movhps
            | M::Movlhps
            | M::Movlpd
            | M::Movlps
            | M::Movmskpd
            | M::Movmskps
            | M::Movntdq
            | M::Movntdqa
            | M::Movntpd
            | M::Movntps
            | M::Movq
            | M::Movsd
            | M::Movshdup
            | M::Movsldup
            | M::Movss
            | M::Movupd
            | M::Movups
            | M::Orpd
            | M::Orps
            | M::Shufpd
            | M::Shufps
            | M::Unpckhpd
            | M::Unpckhps
            | M::Unpcklpd
            | M::Unpcklps
            | M::Xorpd
            | M::Xorps
    )
}

/// SSE arithmetic, comparison and conversion; each may raise #XM.
pub(super) fn float(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Addpd
            | M::Addps
            | M::Addsd
            | M::Addss
            | M::Addsubpd
            | M::Addsubps
            | M::Cmppd
            | M::Cmpps
            | M::Cmpsd
            | M::Cmpss
            | M::Comisd
            | M::Comiss
            | M::Cvtdq2pd
            | M::Cvtdq2ps
            | M::Cvtpd2dq
            | M::Cvtpd2ps
            | M::Cvtps2dq
            | M::Cvtps2pd
            | M::Cvtsd2si
            | M::Cvtsd2ss
            | M::Cvtsi2sd
            | M::Cvtsi2ss
            | M::Cvtss2sd
            | M::Cvtss2si
            | M::Cvttpd2dq
            | M::Cvttps2dq
            | M::Cvttsd2si
            | M::Cvttss2si
            | M::Divpd
            | M::Divps
            | M::Divsd
            | M::Divss
            | M::Dppd
            | M::Dpps
            | M::Haddpd
            | M::Haddps
            | M::Hsubpd
            | M::Hsubps
            | M::Maxpd
            | M::Maxps
            | M::Maxsd
            | M::Maxss
            | M::Minpd
            | M::Minps
            | M::Minsd
            | M::Minss
            | M::Mulpd
            | M::Mulps
            | M::Mulsd
            | M::Mulss
            | M::Rcpps
            | M::Rcpss
            | M::Roundpd
            | M::Roundps
            | M::Roundsd
            | M::Roundss
            | M::Rsqrtps
            | M::Rsqrtss
            | M::Sqrtpd
            | M::Sqrtps
            | M::Sqrtsd
            | M::Sqrtss
            | M::Subpd
            | M::Subps
            | M::Subsd
            | M::Subss
            | M::Ucomisd
            | M::Ucomiss
    )
}
