//! Denormal numbers as zero: a saturated softmax makes them, and they slow a backward pass 35-fold.

/// Makes this thread and every thread of the global rayon pool treat denormals as zero, operands
/// and results alike. Threads started later by any of these inherit it, so `main` calls this first.
///
/// Does nothing on processors other than x86-64 and aarch64.
pub fn flush_denormals_everywhere() {
    flush();
    rayon::broadcast(|_| flush());
}

/// Whether denormals are flushed: on this thread first, then on each thread of the global pool.
/// Found by doing the arithmetic, not by reading the setting.
pub fn denormals_flushed() -> Vec<bool> {
    std::iter::once(is_flushed()).chain(rayon::broadcast(|_| is_flushed())).collect()
}

/// Rust assumes the default floating-point environment when it folds constants. What this changes
/// is whether numbers below 1.2e-38 are 0, which no result here may depend on.
#[cfg(target_arch = "x86_64")]
pub(crate) fn flush() {
    const FLUSH_TO_ZERO: u32 = 1 << 15;
    const DENORMALS_ARE_ZERO: u32 = 1 << 6;
    let mut control = 0u32;
    // SAFETY: both instructions touch only the control register and this variable, and the bits set
    // are defined on every x86-64 processor.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack, preserves_flags));
        control |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &control, options(nostack, preserves_flags));
    }
}

/// As on x86-64; one bit covers operands and results.
#[cfg(target_arch = "aarch64")]
pub(crate) fn flush() {
    const FLUSH_TO_ZERO: u64 = 1 << 24;
    // SAFETY: the instructions touch only the control register, and the bit is defined in all of
    // ARMv8.
    #[allow(unsafe_code)]
    unsafe {
        let mut control: u64;
        std::arch::asm!("mrs {}, fpcr", out(reg) control, options(nomem, nostack, preserves_flags));
        control |= FLUSH_TO_ZERO;
        std::arch::asm!("msr fpcr, {}", in(reg) control, options(nomem, nostack, preserves_flags));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn flush() {}

/// Kept out of line, because the compiler may move arithmetic past a change of the control register.
#[inline(never)]
fn is_flushed() -> bool {
    use std::hint::black_box;
    let operand = black_box(black_box(f32::from_bits(1)) * black_box(1e30));
    let result = black_box(black_box(f32::MIN_POSITIVE) * black_box(0.5));
    operand == 0.0 && result == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushing_reaches_this_thread_and_its_children() {
        // On a thread of its own: the other tests keep the default.
        let inherited = std::thread::spawn(|| {
            let before = is_flushed();
            flush();
            (before, is_flushed(), std::thread::spawn(is_flushed).join().unwrap())
        });
        let known = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
        assert_eq!(inherited.join().unwrap(), (false, known, known));
    }

    #[test]
    fn the_report_covers_the_pool() {
        assert_eq!(denormals_flushed().len(), 1 + rayon::current_num_threads());
    }
}
