//! Which instruction set runs, and `versions!`, which compiles one body for each of them.
//!
//! Invariant: an [`Isa`] names a set this machine has; only detection makes one.

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

/// The instruction sets there is code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// What every machine of this architecture has.
    Portable,
}

impl Isa {
    /// The best set there is.
    pub fn detect() -> Self {
        Self::all()[0]
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Avx512 => "AVX-512",
            Set::Avx2 => "AVX2 with FMA",
            Set::Portable => "portable code",
        }
    }

    /// Its name, to choose code by.
    pub(crate) fn set(self) -> Set {
        self.0
    }

    /// What multiplies bf16 as they are, where the machine has it.
    pub(crate) fn bf16(self) -> Option<super::Bf16> {
        super::Bf16::detect(self)
    }

    /// All sets this machine has, the best first.
    pub fn all() -> Vec<Self> {
        [Set::Avx512, Set::Avx2, Set::Portable]
            .into_iter()
            .filter(|&set| has(set))
            .map(Self)
            .collect()
    }
}

#[cfg(target_arch = "x86_64")]
fn has(set: Set) -> bool {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    match set {
        Set::Avx512 => {
            avx2 && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        }
        Set::Avx2 => avx2,
        Set::Portable => true,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(set: Set) -> bool {
    set == Set::Portable
}

/// Compiles a function once for each instruction set and adds a first parameter, the [`Isa`], that chooses.
///
/// The body is ordinary safe Rust that the compiler turns into vector code: rustc never reorders or fuses
/// floating-point operations by itself, so every version gives the same bits.
#[cfg(target_arch = "x86_64")]
macro_rules! versions {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls code compiled for an instruction set that was detected")]
        $vis fn $name(isa: $crate::cpu::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
            match isa.set() {
                // SAFETY: this `Isa` exists, so AVX-512 F, BW, DQ and VL were detected.
                $crate::cpu::simd::Set::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
                $crate::cpu::simd::Set::Avx2 => unsafe { avx2($($arg),*) },
                $crate::cpu::simd::Set::Portable => portable($($arg),*),
            }
        }
    };
}

/// Compiles a function and adds a first parameter for the [`Isa`], of which this architecture has but one.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! versions {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(_: $crate::cpu::simd::Isa, $($arg: $ty),*) $(-> $ret)? $body
    };
}

pub(crate) use versions;

/// Compiles a body, given as a function whose last parameter is a step of three operands, once for each instruction set
/// with that set's own step: `[AVX-512's, AVX2's, the portable one]`.
#[cfg(target_arch = "x86_64")]
macro_rules! with_step {
    (
        [$avx512:path, $avx2:path, $portable:path],
        $(#[$meta:meta])* fn $name:ident, $body:ident, ($($arg:ident: $ty:ty),*)
    ) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls code compiled for an instruction set that was detected")]
        pub(crate) fn $name(isa: $crate::cpu::simd::Isa, $($arg: $ty),*) {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body($($arg),*, |a, b, c| $avx512(a, b, c));
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*, |a, b, c| $avx2(a, b, c));
            }
            match isa.set() {
                // SAFETY: this `Isa` exists, so AVX-512 F, BW, DQ and VL were detected.
                $crate::cpu::simd::Set::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
                $crate::cpu::simd::Set::Avx2 => unsafe { avx2($($arg),*) },
                $crate::cpu::simd::Set::Portable => $body($($arg),*, $portable),
            }
        }
    };
}

/// Compiles a body with the portable step, the only one for this architecture.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! with_step {
    (
        [$avx512:path, $avx2:path, $portable:path],
        $(#[$meta:meta])* fn $name:ident, $body:ident, ($($arg:ident: $ty:ty),*)
    ) => {
        $(#[$meta])*
        pub(crate) fn $name(_: $crate::cpu::simd::Isa, $($arg: $ty),*) {
            $body($($arg),*, $portable);
        }
    };
}

pub(crate) use with_step;
