//! Sixteen lanes of `f32` on AVX-512, AVX2 and anything else: one source, three compilations,
//! chosen once at run time.
//!
//! A [`Kernel`] is written once over [`Lanes`], sixteen at a time on every processor, so that the
//! order of operations never depends on the width of the registers. A value of a [`Lanes`] type is
//! the proof that the processor has its instructions, which is what makes kernels safe code.

use std::{ops::Range, sync::OnceLock};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// One vector in memory.
pub(crate) type Vector = [f32; LANES];

/// A computation that is compiled once for every level. `run` and everything it calls must be
/// `#[inline(always)]`, or it is compiled without the level's instructions.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;
    /// Computes it.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Arithmetic on vectors of sixteen, lane by lane.
pub(crate) trait Lanes: Copy {
    /// A vector in registers.
    type V: Copy;
    /// How many vectors a kernel can accumulate at once without spilling registers.
    const ACCUMULATORS: usize;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// From memory.
    fn load(self, x: &Vector) -> Self::V;
    /// To memory.
    fn store(self, v: Self::V, to: &mut Vector);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has an instruction for it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater, and `b` where either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser, and `b` where either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y`.
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `v` in the lanes `inside`, `outside` in the others.
    fn mask(self, inside: Range<usize>, v: Self::V, outside: f32) -> Self::V;
    /// `v 2^n` for whole `n` in -160..=160.
    fn ldexp(self, v: Self::V, n: Self::V) -> Self::V;
    /// Exchanges the lanes of `a` that have the bit `stride` with those of `b` that lack it: one
    /// step of a transposition. `stride` is 1, 2, 4 or 8.
    fn exchange(self, a: Self::V, b: Self::V, stride: usize) -> (Self::V, Self::V);

    /// Prefetches the memory at `at`, which need not be valid.
    fn prefetch(self, at: *const f32);

    /// The transpose of sixteen vectors.
    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        // Written out, because a loop over the four would keep the vectors in memory.
        let rows = self.exchange_all::<8>(rows);
        let rows = self.exchange_all::<4>(rows);
        let rows = self.exchange_all::<2>(rows);
        self.exchange_all::<1>(rows)
    }

    /// One step of a transposition.
    #[inline(always)]
    fn exchange_all<const STRIDE: usize>(self, mut rows: [Self::V; LANES]) -> [Self::V; LANES] {
        for i in 0..LANES {
            if i & STRIDE == 0 {
                (rows[i], rows[i + STRIDE]) = self.exchange(rows[i], rows[i + STRIDE], STRIDE);
            }
        }
        rows
    }

    /// The sum of the lanes, in one fixed order at every level.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        self.reduce(v, |a, b| a + b)
    }

    /// The greatest lane.
    #[inline(always)]
    fn greatest(self, v: Self::V) -> f32 {
        self.reduce(v, |a, b| if a > b { a } else { b })
    }

    /// Folds the upper half of the lanes onto the lower half until one is left.
    #[inline(always)]
    fn reduce(self, v: Self::V, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut x = [0.0; LANES];
        self.store(v, &mut x);
        let x: [f32; 8] = std::array::from_fn(|i| f(x[i], x[i + 8]));
        let x: [f32; 4] = std::array::from_fn(|i| f(x[i], x[i + 4]));
        let x: [f32; 2] = std::array::from_fn(|i| f(x[i], x[i + 2]));
        f(x[0], x[1])
    }

    /// `e^x` within 2 units in the last place; exactly 0 at minus infinity.
    ///
    /// Range reduction by a two-part ln 2 and the polynomial of Cephes' `expf` (Moshier 1989).
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 pushes the fraction out of the mantissa, which rounds to a whole number.
        let rounder = self.splat(12_582_912.0);
        let x = self.max(self.splat(-106.0), x);
        let x = self.min(self.splat(89.5), x);
        let n = self.sub(self.mul_add(x, self.splat(std::f32::consts::LOG2_E), rounder), rounder);
        let r = self.mul_add(n, self.splat(-355.0 / 512.0), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let tail = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        let p = self.polynomial(r, 1.987_569_1e-4, tail);
        let p = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.ldexp(p, n)
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.splat(0.0), x))))
    }

    /// The hyperbolic tangent within 2 units in the last place, by the two branches of Cephes' `tanhf` (Moshier 1989).
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let (one, two) = (self.splat(1.0), self.splat(2.0));
        let size = self.max(x, self.sub(self.splat(0.0), x));
        let power = self.exp(self.mul(size, two));
        let far = self.sub(one, self.div(two, self.add(power, one)));
        let far = self.if_less(x, self.splat(0.0), self.sub(self.splat(0.0), far), far);
        let square = self.mul(x, x);
        let tail = [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
        let near = self.mul(self.polynomial(square, -5.704_988_7e-3, tail), square);
        self.if_less(size, self.splat(0.625), self.mul_add(near, x, x), far)
    }

    /// `cap tanh(x / cap)`, between `-cap` and `cap`.
    #[inline(always)]
    fn softcap(self, x: Self::V, cap: Self::V) -> Self::V {
        self.mul(cap, self.tanh(self.div(x, cap)))
    }

    /// The slope of [`Lanes::softcap`] where its value is `capped`.
    #[inline(always)]
    fn softcap_slope(self, capped: Self::V, cap: Self::V) -> Self::V {
        let t = self.div(capped, cap);
        self.sub(self.splat(1.0), self.mul(t, t))
    }

    /// The polynomial in `x` with the leading coefficient first, by Horner's rule.
    #[inline(always)]
    fn polynomial<const N: usize>(self, x: Self::V, leading: f32, rest: [f32; N]) -> Self::V {
        let mut p = self.splat(leading);
        for c in rest {
            p = self.mul_add(p, x, self.splat(c));
        }
        p
    }
}

/// The instructions that fused operations on this processor use: `avx512`, `avx2` or `portable`.
///
/// Matrix products choose for themselves, in the `gemm` crate.
pub fn cpu_level() -> &'static str {
    match Level::best().0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => "avx512",
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => "avx2",
        Kind::Portable => "portable",
    }
}

/// Runs a plain loop over numbers compiled for the widest vectors of this processor, where the rest of the
/// program is compiled for any. The results are the same: nothing is fused or added in another order.
///
/// Whatever `f` calls has to be inlined, and so has `f` itself: `widened(#[inline(always)] || ...)`.
pub fn widened<R>(f: impl FnOnce() -> R) -> R {
    Level::best().run(Plain(f))
}

struct Plain<F>(F);

impl<R, F: FnOnce() -> R> Kernel for Plain<F> {
    type Output = R;

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) -> R {
        (self.0)()
    }
}

/// The instructions that kernels are compiled for. A value exists only where the processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    /// The fastest level of this processor.
    pub(crate) fn best() -> Level {
        #[cfg(test)]
        if let Some(level) = FORCED.get() {
            return level;
        }
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available()[0])
    }

    /// Every level of this processor, the fastest first.
    pub(crate) fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if fma && is_x86_feature_detected!("avx512f") {
                levels.push(Level(Kind::Avx512));
            }
            if fma {
                levels.push(Level(Kind::Avx2));
            }
        }
        levels.push(Level(Kind::Portable));
        levels
    }

    /// Whether `mul_add` rounds once, as it does in the `gemm` crate wherever the processor can.
    pub(crate) fn fuses(self) -> bool {
        self.0 != Kind::Portable
    }

    /// Runs a kernel compiled for this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: levels come only from `available`, which has asked the processor.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kind::Avx512 => unsafe { x86::run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kind::Avx2 => unsafe { x86::run_avx2(kernel) },
            Kind::Portable => kernel.run(Portable),
        }
    }
}

#[cfg(test)]
thread_local!(static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) });

#[cfg(test)]
impl Level {
    /// Makes this the best level of the calling thread: tests run what other processors would.
    pub(crate) fn force(self) {
        FORCED.set(Some(self));
    }
}

/// Plain arrays, for processors without the others and as their slow double in tests.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn lanewise(f: impl Fn(usize) -> f32) -> Vector {
    std::array::from_fn(f)
}

impl Lanes for Portable {
    type V = Vector;
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Vector {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Vector) -> Vector {
        *x
    }
    #[inline(always)]
    fn store(self, v: Vector, to: &mut Vector) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Vector, b: Vector, c: Vector) -> Vector {
        // Without the instruction, a single rounding would be a library call per element.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            lanewise(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanewise(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Vector, b: Vector) -> Vector {
        lanewise(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn if_less(self, a: Vector, b: Vector, x: Vector, y: Vector) -> Vector {
        lanewise(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn mask(self, inside: Range<usize>, v: Vector, outside: f32) -> Vector {
        lanewise(|i| if inside.start <= i && i < inside.end { v[i] } else { outside })
    }
    #[inline(always)]
    fn ldexp(self, v: Vector, n: Vector) -> Vector {
        lanewise(|i| {
            // Two factors, because one alone leaves the range of normal numbers.
            let n = n[i] as i32;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            v[i] * power(n >> 1) * power(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}
    #[inline(always)]
    fn exchange(self, a: Vector, b: Vector, stride: usize) -> (Vector, Vector) {
        let low = lanewise(|i| if i & stride == 0 { a[i] } else { b[i - stride] });
        let high = lanewise(|i| if i & stride == 0 { a[i + stride] } else { b[i] });
        (low, high)
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    //! The intrinsics. Every `unsafe` block here rests on the same two facts: a value of the type
    //! exists only inside `run_*`, which is entered only on processors that have the instructions;
    //! and a `&Vector` is sixteen readable (writable) floats, loaded without alignment.

    use super::{Kernel, LANES, Lanes, Vector};
    use std::{arch::x86_64::*, ops::Range};

    /// Proof of AVX-512F, AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    /// Proof of AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }

    impl Lanes for Avx512 {
        type V = __m512;
        const ACCUMULATORS: usize = 16;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &Vector) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut Vector) {
            // SAFETY: see the module.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn if_less(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
        }
        #[inline(always)]
        fn mask(self, inside: Range<usize>, v: __m512, outside: f32) -> __m512 {
            let below = |n: usize| ((1u32 << n.min(LANES)) - 1) as u16;
            let inside = below(inside.end) & !below(inside.start);
            // SAFETY: see the module.
            unsafe { _mm512_mask_blend_ps(inside, _mm512_set1_ps(outside), v) }
        }
        #[inline(always)]
        fn ldexp(self, v: __m512, n: __m512) -> __m512 {
            // SAFETY: see the module.
            unsafe { _mm512_scalef_ps(v, n) }
        }
        #[inline(always)]
        fn prefetch(self, at: *const f32) {
            // SAFETY: a prefetch of any address has no effect that a program could see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        fn exchange(self, a: __m512, b: __m512, stride: usize) -> (__m512, __m512) {
            // Lanes of `b` are numbered from 16 on.
            let low: [i32; LANES] =
                std::array::from_fn(|i| if i & stride == 0 { i } else { LANES + i - stride } as i32);
            let high: [i32; LANES] =
                std::array::from_fn(|i| if i & stride == 0 { i + stride } else { LANES + i } as i32);
            // SAFETY: see the module; an index vector is sixteen readable integers.
            unsafe {
                let pick = |lanes: &[i32; LANES]| _mm512_permutex2var_ps(a, _mm512_loadu_epi32(lanes.as_ptr()), b);
                (pick(&low), pick(&high))
            }
        }
    }

    impl Avx2 {
        #[inline(always)]
        fn both(a: [__m256; 2], b: [__m256; 2], f: impl Fn(__m256, __m256) -> __m256) -> [__m256; 2] {
            [f(a[0], b[0]), f(a[1], b[1])]
        }
    }

    impl Lanes for Avx2 {
        type V = [__m256; 2];
        const ACCUMULATORS: usize = 4;

        #[inline(always)]
        fn splat(self, x: f32) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn load(self, x: &Vector) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
        }
        #[inline(always)]
        fn store(self, v: [__m256; 2], to: &mut Vector) {
            // SAFETY: see the module.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to[8..].as_mut_ptr(), v[1]);
            }
        }
        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
        }
        #[inline(always)]
        fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
        }
        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
        }
        #[inline(always)]
        fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
        }
        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
        }
        #[inline(always)]
        fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            Self::both(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
        }
        #[inline(always)]
        fn if_less(self, a: [__m256; 2], b: [__m256; 2], x: [__m256; 2], y: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            std::array::from_fn(|i| unsafe { _mm256_blendv_ps(y[i], x[i], _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i])) })
        }
        #[inline(always)]
        fn mask(self, inside: Range<usize>, v: [__m256; 2], outside: f32) -> [__m256; 2] {
            let (start, end) = (inside.start as f32, inside.end as f32);
            let lane = self.load(&std::array::from_fn(|i| i as f32));
            let outside = self.splat(outside);
            let v = self.if_less(lane, self.splat(start), outside, v);
            self.if_less(lane, self.splat(end), v, outside)
        }
        #[inline(always)]
        fn ldexp(self, v: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see the module.
            std::array::from_fn(|i| unsafe {
                // Two factors, because one alone leaves the range of normal numbers.
                let n = _mm256_cvtps_epi32(n[i]);
                let half = _mm256_srai_epi32::<1>(n);
                let power =
                    |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
                _mm256_mul_ps(_mm256_mul_ps(v[i], power(half)), power(_mm256_sub_epi32(n, half)))
            })
        }
        #[inline(always)]
        fn prefetch(self, at: *const f32) {
            // SAFETY: a prefetch of any address has no effect that a program could see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        fn exchange(self, a: [__m256; 2], b: [__m256; 2], stride: usize) -> ([__m256; 2], [__m256; 2]) {
            if stride == 8 {
                return ([a[0], b[0]], [a[1], b[1]]);
            }
            // SAFETY: see the module.
            let exchange = |a, b| unsafe {
                match stride {
                    4 => (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)),
                    2 => (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b)),
                    _ => (
                        _mm256_blend_ps::<0xaa>(a, _mm256_moveldup_ps(b)),
                        _mm256_blend_ps::<0xaa>(_mm256_movehdup_ps(a), b),
                    ),
                }
            };
            let ((low_0, high_0), (low_1, high_1)) = (exchange(a[0], b[0]), exchange(a[1], b[1]));
            ([low_0, low_1], [high_0, high_1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of one vector.
    trait Map {
        fn map<L: Lanes>(&self, lanes: L, v: L::V) -> L::V;
    }

    /// Applies a function to every element of a slice; the last vector is padded with zeros.
    struct Each<'a, M>(&'a mut [f32], M);

    impl<M: Map> Kernel for Each<'_, M> {
        type Output = ();

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            for x in self.0.chunks_mut(LANES) {
                let mut padded = [0.0; LANES];
                padded[..x.len()].copy_from_slice(x);
                lanes.store(self.1.map(lanes, lanes.load(&padded)), &mut padded);
                x.copy_from_slice(&padded[..x.len()]);
            }
        }
    }

    /// Compares a function at every level with its double over a dense grid, in units of the last
    /// place of the expected value.
    #[track_caller]
    fn check(f: impl Map + Copy, expected: impl Fn(f64) -> f64, grid: Range<f32>, ulps: f64) {
        let step = (grid.end - grid.start) / 300_000.0;
        let points: Vec<f32> = (0..=300_000).map(|i| grid.start + i as f32 * step).collect();
        for level in Level::available() {
            let mut got = points.clone();
            level.run(Each(&mut got, f));
            for (x, y) in points.iter().zip(&got) {
                let want = expected(f64::from(*x));
                let ulp = 2f64.powi((want.abs().log2().floor() as i32).max(-126) - 23);
                let error = (f64::from(*y) - want).abs() / ulp;
                assert!(error <= ulps, "{level:?}: f({x}) = {y}, not {want}: {error} ulp");
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Exp;
    impl Map for Exp {
        #[inline(always)]
        fn map<L: Lanes>(&self, lanes: L, v: L::V) -> L::V {
            lanes.exp(v)
        }
    }
    #[derive(Clone, Copy)]
    struct Sigmoid;
    impl Map for Sigmoid {
        #[inline(always)]
        fn map<L: Lanes>(&self, lanes: L, v: L::V) -> L::V {
            lanes.sigmoid(v)
        }
    }

    #[derive(Clone, Copy)]
    struct Tanh;
    impl Map for Tanh {
        #[inline(always)]
        fn map<L: Lanes>(&self, lanes: L, v: L::V) -> L::V {
            lanes.tanh(v)
        }
    }

    #[test]
    fn functions_are_accurate_at_every_level() {
        check(Tanh, f64::tanh, -10.0..10.0, 2.0);
        check(Tanh, f64::tanh, -0.7..0.7, 2.0);
        check(Tanh, f64::tanh, 0.0..1e-36, 2.0);
        check(Exp, f64::exp, -87.0..88.0, 2.0);
        check(Exp, f64::exp, -1.0..1.0, 2.0);
        check(Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0..20.0, 4.0);
    }

    #[test]
    fn functions_have_the_right_limits() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for level in Level::available() {
            let mut x = [-inf, -200.0, 0.0, 88.73, 1e4, inf, nan];
            level.run(Each(&mut x, Exp));
            assert_eq!(x[..6], [0.0, 0.0, 1.0, inf, inf, inf], "{level:?}");
            assert!(x[6].is_nan(), "{level:?}");
            let mut x = [-inf, -1e4, 0.0, 1e4, inf, nan];
            level.run(Each(&mut x, Tanh));
            assert_eq!(x[..5], [-1.0, -1.0, 0.0, 1.0, 1.0], "{level:?}");
            assert!(x[5].is_nan(), "{level:?}");
            let mut x = [-inf, -1e4, 0.0, 1e4, inf, nan];
            level.run(Each(&mut x, Sigmoid));
            assert_eq!(x[..5], [0.0, 0.0, 0.5, 1.0, 1.0], "{level:?}");
            assert!(x[5].is_nan(), "{level:?}");
        }
    }

    #[test]
    fn a_result_does_not_depend_on_its_place() {
        let values: Vec<f32> = (0..37).map(|i| (i as f32 - 20.0) * 0.731).collect();
        for level in Level::available() {
            let mut together = values.clone();
            level.run(Each(&mut together, Exp));
            for (x, y) in values.iter().zip(together) {
                let mut alone = [*x];
                level.run(Each(&mut alone, Exp));
                assert_eq!(alone[0].to_bits(), y.to_bits(), "{level:?}");
            }
        }
    }

    #[test]
    fn transposes() {
        struct Transpose;
        impl Kernel for Transpose {
            type Output = [Vector; LANES];
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> [Vector; LANES] {
                let rows = std::array::from_fn(|r| lanes.load(&std::array::from_fn(|i| (100 * r + i) as f32)));
                let mut columns = [[0.0; LANES]; LANES];
                lanes.transpose(rows).into_iter().zip(&mut columns).for_each(|(v, to)| lanes.store(v, to));
                columns
            }
        }
        for level in Level::available() {
            let columns = level.run(Transpose);
            let want: [Vector; LANES] = std::array::from_fn(|r| std::array::from_fn(|i| (100 * i + r) as f32));
            assert_eq!(columns, want, "{level:?}");
        }
    }

    #[test]
    fn masks_and_sums() {
        struct Masked(Range<usize>);
        impl Kernel for Masked {
            type Output = f32;
            #[inline(always)]
            fn run<L: Lanes>(self, lanes: L) -> f32 {
                let lane = lanes.load(&std::array::from_fn(|i| 1.0 + i as f32));
                lanes.sum(lanes.mask(self.0, lane, 0.0))
            }
        }
        for level in Level::available() {
            for (inside, want) in [(0..0, 0.0), (0..16, 136.0), (3..5, 9.0), (7..9, 17.0), (15..16, 16.0)] {
                assert_eq!(level.run(Masked(inside.clone())), want, "{level:?} {inside:?}");
            }
        }
    }

    #[test]
    fn plain_loops_have_the_same_bits_at_every_level() {
        #[inline(always)]
        fn mixed(x: &[f32]) -> Vec<u32> {
            x.windows(3).map(|x| (x[0] * x[1] + x[2].abs().sqrt() / (x[0] + 3.0)).to_bits()).collect()
        }
        let x: Vec<f32> = (0..1_000).map(|i| (i as f32 * 0.37).sin() * 10f32.powi(i % 20 - 10)).collect();
        for level in Level::available() {
            assert!(
                level.run(Plain(
                    #[inline(always)]
                    || mixed(&x)
                )) == mixed(&x),
                "{level:?}"
            );
        }
    }
}
