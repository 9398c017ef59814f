//! Products on AMX: registers of sixteen rows of 64 bytes, multiplied as whole matrices.
//!
//! A tile of [`super::Right`] is sixteen of its lines as they lie, one of [`super::Left`] sixteen
//! of its rows by one line. Two of each are multiplied crosswise, so that each is read once for two
//! products. What the four instructions do is behind [`Tiles`], which tests give in plain code too.

use super::{
    pack::{LANES, Left, Line, Right},
    tile::{Part, Target},
};

/// Blocks of columns that are worked on together.
pub(super) const BLOCKS: usize = 2;

/// Rows of a register.
const ROWS: usize = 16;

/// Eight registers of sixteen rows of 64 bytes. 0 to 3 are sums, 4 and 5 of the left factor, 6 and 7
/// of the right one.
trait Tiles {
    /// Sets a register to zero.
    fn zero<const T: usize>(&mut self);
    /// Loads sixteen rows, `stride` bytes apart.
    ///
    /// # Safety
    ///
    /// They are readable.
    #[allow(unsafe_code)]
    unsafe fn load<const T: usize>(&mut self, from: *const f32, stride: usize);
    /// Stores sixteen rows, `stride` bytes apart.
    ///
    /// # Safety
    ///
    /// They are writable.
    #[allow(unsafe_code)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize);
    /// `sums += left right` of pairs of bf16.
    fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self);
}

/// Computes a part.
///
/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to;
/// [`permitted`] has said yes.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) unsafe fn fill(part: &Part) {
    // SAFETY: the caller's promises.
    unsafe { fill_with(&mut x86::Hardware::new(), part) }
}

/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to.
#[allow(unsafe_code)]
unsafe fn fill_with(tiles: &mut impl Tiles, part: &Part) {
    let Part { left, right, target, rows, blocks, panel, accumulate } = part;
    for row in rows.clone().step_by(2 * ROWS) {
        let second_row = (row + ROWS < rows.end).then_some(row + ROWS);
        let second_block = (blocks.len() > 1).then_some(blocks.start + 1);
        let corner = |row: Option<usize>, block: Option<usize>| {
            Some(Corner { row: row?, block: block?, rows: ROWS.min(rows.end - row?), target, accumulate: *accumulate })
        };
        let block = blocks.start;
        let corners = [
            corner(Some(row), Some(block)),
            corner(Some(row), second_block),
            corner(second_row, Some(block)),
            corner(second_row, second_block),
        ];
        // SAFETY: the corners are inside the area; a factor's lines are read inside its slices, of
        // which the left one is filled up to whole tiles.
        unsafe {
            corners[0].iter().for_each(|corner| corner.load::<0>(tiles));
            corners[1].iter().for_each(|corner| corner.load::<1>(tiles));
            corners[2].iter().for_each(|corner| corner.load::<2>(tiles));
            corners[3].iter().for_each(|corner| corner.load::<3>(tiles));
            for start in panel.clone().step_by(LANES) {
                load_left::<4>(tiles, left, row, start);
                load_right::<6>(tiles, right, block, start);
                tiles.multiply::<0, 4, 6>();
                if let Some(block) = second_block {
                    load_right::<7>(tiles, right, block, start);
                    tiles.multiply::<1, 4, 7>();
                }
                if let Some(row) = second_row {
                    load_left::<5>(tiles, left, row, start);
                    tiles.multiply::<2, 5, 6>();
                    if second_block.is_some() {
                        tiles.multiply::<3, 5, 7>();
                    }
                }
            }
            corners[0].iter().for_each(|corner| corner.store::<0>(tiles));
            corners[1].iter().for_each(|corner| corner.store::<1>(tiles));
            corners[2].iter().for_each(|corner| corner.store::<2>(tiles));
            corners[3].iter().for_each(|corner| corner.store::<3>(tiles));
        }
    }
}

/// Sixteen rows of `left` by the line that begins at pair `start`.
#[allow(unsafe_code)]
fn load_left<const T: usize>(tiles: &mut impl Tiles, left: &Left, row: usize, start: usize) {
    let lines = &left.rows_from(row)[start / LANES..];
    assert!(lines.len() > (ROWS - 1) * left.stride(), "rows of a tile");
    // SAFETY: the last of the rows begins inside `lines` by the assertion.
    unsafe { tiles.load::<T>(lines.as_ptr().cast(), left.stride() * size_of::<Line>()) }
}

/// Sixteen lines of a block of `right`, from pair `start` on.
#[allow(unsafe_code)]
fn load_right<const T: usize>(tiles: &mut impl Tiles, right: &Right, block: usize, start: usize) {
    let lines = &right.block(block)[start..][..LANES];
    // SAFETY: sixteen lines by the slice.
    unsafe { tiles.load::<T>(lines.as_ptr().cast(), size_of::<Line>()) }
}

/// One register's part of the result.
struct Corner<'a> {
    row: usize,
    block: usize,
    /// Rows of it that exist.
    rows: usize,
    target: &'a Target,
    accumulate: bool,
}

#[allow(unsafe_code)]
impl Corner<'_> {
    /// # Safety
    ///
    /// Its rows and columns exist, and nobody else accesses them.
    unsafe fn load<const T: usize>(&self, tiles: &mut impl Tiles) {
        if !self.accumulate {
            return tiles.zero::<T>();
        }
        let width = self.target.width(self.block);
        if self.rows == ROWS && width == LANES {
            let stride = self.target.stride() * size_of::<f32>();
            // SAFETY: sixteen whole rows, by the caller's promise.
            return unsafe { tiles.load::<T>(self.target.at(self.row, self.block), stride) };
        }
        let mut sums = [[0.0; LANES]; ROWS];
        for (r, sums) in sums[..self.rows].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.target.read(self.row + r, self.block, sums) };
        }
        // SAFETY: sixteen rows of 64 bytes.
        unsafe { tiles.load::<T>(sums.as_ptr().cast(), size_of::<Line>()) }
    }

    /// # Safety
    ///
    /// Its rows and columns exist, and nobody else accesses them.
    unsafe fn store<const T: usize>(&self, tiles: &mut impl Tiles) {
        let width = self.target.width(self.block);
        if self.rows == ROWS && width == LANES {
            let stride = self.target.stride() * size_of::<f32>();
            // SAFETY: sixteen whole rows, by the caller's promise.
            return unsafe { tiles.store::<T>(self.target.at(self.row, self.block), stride) };
        }
        let mut sums = [[0.0; LANES]; ROWS];
        // SAFETY: sixteen rows of 64 bytes.
        unsafe { tiles.store::<T>(sums.as_mut_ptr().cast(), size_of::<Line>()) };
        for (r, sums) in sums[..self.rows].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.target.write(self.row + r, self.block, sums) };
        }
    }
}

/// Whether the processor has AMX for bf16 and the system lets this process use it; asks once.
#[cfg(target_arch = "x86_64")]
pub(super) fn permitted() -> bool {
    use std::sync::OnceLock;
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(x86::ask)
}

#[cfg(all(test, target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
mod emulator;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::Tiles;
    use std::arch::{asm, x86_64::*};

    /// The tile registers of this thread, configured while this lives.
    pub(super) struct Hardware(());

    /// The 64 bytes that say how large every register is: palette 1, 64 bytes by 16 rows in all eight.
    #[repr(C, align(64))]
    struct Configuration([u8; 64]);

    static WHOLE: Configuration = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut register = 0;
        while register < 8 {
            bytes[16 + 2 * register] = 64;
            bytes[48 + register] = 16;
            register += 1;
        }
        Configuration(bytes)
    };

    impl Hardware {
        /// # Safety
        ///
        /// [`super::permitted`] has said yes.
        pub(super) unsafe fn new() -> Hardware {
            // SAFETY: the instruction reads 64 bytes; that it exists is the caller's promise.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
            Hardware(())
        }
    }

    impl Drop for Hardware {
        /// Gives the registers back, or the system would save 8 KiB at every switch of threads.
        fn drop(&mut self) {
            // SAFETY: a value exists only where the instruction does.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    impl Tiles for Hardware {
        #[inline(always)]
        fn zero<const T: usize>(&mut self) {
            // SAFETY: a value exists only where the instruction does.
            unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem)) };
        }

        #[inline(always)]
        unsafe fn load<const T: usize>(&mut self, from: *const f32, stride: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) from, in(reg) stride, options(nostack, readonly))
            };
        }

        #[inline(always)]
        unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
            // SAFETY: the caller's promise.
            unsafe { asm!("tilestored [{} + {}], tmm{}", in(reg) to, in(reg) stride, const T, options(nostack)) };
        }

        #[inline(always)]
        fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
            // SAFETY: a value exists only where the instruction does.
            unsafe {
                asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const LEFT, const RIGHT, options(nostack, nomem))
            };
        }
    }

    /// Asks the processor, and then the system.
    pub(super) fn ask() -> bool {
        #[cfg(all(test, target_os = "linux", target_env = "gnu"))]
        if super::emulator::wanted() {
            super::emulator::install();
            return true;
        }
        offered() && request()
    }

    /// Asks the processor.
    pub(super) fn offered() -> bool {
        /// Of leaf 7, register EDX.
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        features & AMX_BF16 != 0 && features & AMX_TILE != 0
    }

    /// Linux saves tile registers only for processes that have asked for it (since 5.16).
    #[cfg(target_os = "linux")]
    fn request() -> bool {
        const ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: the call writes no memory; the kernel clobbers rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack)
            );
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn request() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::{tests::check_product, tile::add_pairs};

    /// The four instructions in plain code.
    struct Plain([[[f32; LANES]; ROWS]; 8]);

    // SAFETY: the promises of the trait are those of the pointers below.
    #[allow(unsafe_code)]
    impl Tiles for Plain {
        fn zero<const T: usize>(&mut self) {
            self.0[T] = [[0.0; LANES]; ROWS];
        }

        unsafe fn load<const T: usize>(&mut self, from: *const f32, stride: usize) {
            for (r, row) in self.0[T].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *row = unsafe { *from.byte_add(r * stride).cast() };
            }
        }

        unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
            for (r, row) in self.0[T].iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *to.byte_add(r * stride).cast() = *row };
            }
        }

        fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
            let lines = self.0[RIGHT].map(Line);
            for (row, pairs) in self.0[LEFT].into_iter().enumerate() {
                pairs.iter().zip(&lines).for_each(|(pair, line)| add_pairs(&mut self.0[SUMS][row], *pair, line));
            }
        }
    }

    /// The loops over registers are tested on any processor; the instructions themselves where they are, by
    /// the test of all units, and in an emulator.
    #[test]
    fn loops_over_registers_make_products() {
        for (m, k, n) in [(1, 1, 1), (16, 32, 16), (17, 33, 40), (40, 100, 33), (32, 64, 32), (5, 700, 50)] {
            check_product("tiles in plain code", m, k, n, |left, right, out, accumulate| {
                let target = Target::new(out.as_mut_ptr(), n);
                for first in (0..right.blocks()).step_by(BLOCKS) {
                    let (blocks, panel) = (first..right.blocks().min(first + BLOCKS), 0..left.pairs());
                    let part = Part { left, right, target: &target, rows: 0..m, blocks, panel, accumulate };
                    let tiles = &mut Plain([[[f32::NAN; LANES]; ROWS]; 8]);
                    // SAFETY: the areas are inside the result and one after the other.
                    #[allow(unsafe_code)]
                    unsafe {
                        fill_with(tiles, &part)
                    };
                }
            });
        }
    }

    /// In a process of its own, in which a handler executes what this processor does not have.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
    #[test]
    fn the_instructions_make_products_in_an_emulator() {
        use crate::bf16::{Kind, Unit, tests::multiply};
        use std::process::Command;
        if emulator::wanted() {
            let unit = Unit::best();
            assert_eq!(unit, Unit(Kind::Amx));
            for (m, k, n) in [(1, 1, 1), (16, 32, 16), (37, 100, 97), (33, 2100, 40)] {
                check_product("an emulator", m, k, n, multiply);
            }
            assert!(emulator::products() > 0, "nothing was emulated");
            return;
        }
        // Packing needs AVX-512, and a processor with AMX is tested by the test of all units.
        if !Unit::available().contains(&Unit(Kind::Avx512)) || x86::offered() {
            return println!("skipped: needs a processor with AVX-512-BF16 and without AMX");
        }
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).args(["--exact", emulator::TEST]).env(emulator::WANTED, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }
}
