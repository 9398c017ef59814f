//! Products on AMX: registers of sixteen rows of 64 bytes, multiplied as whole matrices.
//!
//! A register takes sixteen lines of [`super::Right`], or a tile of [`super::Left`]. Two of each are multiplied
//! crosswise, so that each is read once for two products.
//!
//! The products take less time than moving what they are made of, so that what is read again and again has
//! to be near: columns along a panel of the depth in the first-level cache, rows of the left factor and the
//! sums, which wait there for the next panel, in the second. The next columns are asked for meanwhile, and a
//! large result is written past the caches, whose lines would have to be read before they are overwritten.
//!
//! [`Tiles`] stands for the instructions. Tests also implement it in plain code.

use super::{
    pack::{LANES, Line},
    tile::{Part, Start, Target},
};

/// Blocks of columns that are worked on together.
pub(super) const COLUMN_BLOCKS: usize = 2;

/// Rows of a register.
const ROWS: usize = 16;

/// Pairs of the depth along which two blocks of columns take 32 KiB, two thirds of a first-level cache.
const PANEL: usize = 256;

/// What a register holds.
pub(super) type Tile = [Line; ROWS];

/// A register of zeros.
pub(super) const ZERO: Tile = [Line([0.0; LANES]); ROWS];

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
    /// Loads what is not worth a place in the first-level cache.
    fn load_once<const T: usize>(&mut self, tile: &Tile);
    /// Stores a register.
    fn store<const T: usize>(&mut self, tile: &mut Tile);
    /// `sums += left right` of pairs of bf16.
    fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self);
    /// Prefetches a line into the second-level cache. Its address need not be valid.
    fn prefetch(&mut self, line: *const Line);
    /// Writes the first `rows` rows to a target.
    ///
    /// # Safety
    ///
    /// They exist there, and nobody else accesses them.
    #[allow(unsafe_code)]
    unsafe fn write(&mut self, tile: &Tile, rows: usize, target: &Target, row: usize, block: usize);
}

/// Registers of sums that a part of `rows` rows carries from one panel to the next.
pub(super) fn sums(rows: usize) -> usize {
    rows.div_ceil(2 * ROWS) * 4
}

/// Computes a part. `sums`, of which there are [`sums()`], holds those of the panels before and after.
///
/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to;
/// [`permitted`] has said yes, and the processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) unsafe fn fill(part: &Part, sums: &mut [Tile]) {
    // SAFETY: the caller's promises.
    unsafe { fill_with(&mut x86::Hardware::new(part.is_last() && part.target.streams()), part, sums) }
}

/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to.
#[allow(unsafe_code)]
unsafe fn fill_with(tiles: &mut impl Tiles, part: &Part, sums: &mut [Tile]) {
    assert_eq!(sums.len(), self::sums(part.rows.len()), "registers of sums");
    for near in part.panels(PANEL) {
        let mut columns = Columns::of(&near, part);
        for (row, sums) in part.rows.clone().step_by(2 * ROWS).zip(sums.as_chunks_mut::<4>().0) {
            let second_row = (row + ROWS < part.rows.end).then_some(row + ROWS);
            let corner = |row: Option<usize>, block: usize| {
                Some(Corner { part, row: row?, block: part.blocks.clone().nth(block)? })
            };
            let corners = [corner(Some(row), 0), corner(Some(row), 1), corner(second_row, 0), corner(second_row, 1)];
            // SAFETY: the corners are inside the area.
            unsafe {
                corners[0].iter().for_each(|corner| corner.begin::<0>(tiles, &mut sums[0], near.is_first()));
                corners[1].iter().for_each(|corner| corner.begin::<1>(tiles, &mut sums[1], near.is_first()));
                corners[2].iter().for_each(|corner| corner.begin::<2>(tiles, &mut sums[2], near.is_first()));
                corners[3].iter().for_each(|corner| corner.begin::<3>(tiles, &mut sums[3], near.is_first()));
            }
            let lines = near.panel.start / LANES..near.panel.end / LANES;
            let first = &part.left.tiles(row)[lines.clone()];
            match second_row.map(|row| &part.left.tiles(row)[lines.clone()]) {
                Some(second) => columns.multiply::<2>(tiles, [first, second]),
                None => columns.multiply::<1>(tiles, [first, &[]]),
            }
            // SAFETY: as above.
            unsafe {
                corners[0].iter().for_each(|corner| corner.end::<0>(tiles, &mut sums[0], near.is_last()));
                corners[1].iter().for_each(|corner| corner.end::<1>(tiles, &mut sums[1], near.is_last()));
                corners[2].iter().for_each(|corner| corner.end::<2>(tiles, &mut sums[2], near.is_last()));
                corners[3].iter().for_each(|corner| corner.end::<3>(tiles, &mut sums[3], near.is_last()));
            }
        }
    }
}

/// One or two blocks of columns along a panel.
struct Columns<'a> {
    blocks: [&'a [Tile]; COLUMN_BLOCKS],
    /// Where the lines begin that will be read after these.
    next: [*const Line; COLUMN_BLOCKS],
    /// Lines of each block that have been prefetched of those.
    asked: usize,
    /// Lines to prefetch at a step.
    pace: usize,
}

impl<'a> Columns<'a> {
    fn of(near: &Part<'a>, part: &Part<'a>) -> Columns<'a> {
        let whole = |block: usize| part.right.block(block);
        let block = |i: usize| {
            let block = part.blocks.clone().nth(i);
            block.map_or(&[][..], |block| whole(block)[near.panel.clone()].as_chunks().0)
        };
        // The same blocks further along the depth, or else the blocks after them along the same depth.
        let next = |i: usize| {
            let Some(block) = part.blocks.clone().nth(i) else { return std::ptr::null() };
            let (lines, len) = (whole(block).as_ptr(), whole(block).len());
            let is_end = near.panel.end == part.panel.end;
            lines.wrapping_add(if is_end { COLUMN_BLOCKS * len + part.panel.start } else { near.panel.end })
        };
        let steps = part.rows.len().div_ceil(2 * ROWS) * near.panel.len() / LANES;
        let pace = near.panel.len().div_ceil(steps.max(1));
        Columns { blocks: [block(0), block(1)], next: [next(0), next(1)], asked: 0, pace }
    }

    /// Adds the products with sixteen or thirty-two rows to the sums.
    #[inline(always)]
    fn multiply<const R: usize>(&mut self, tiles: &mut impl Tiles, rows: [&[Tile]; 2]) {
        if self.blocks[1].is_empty() { self.steps::<R, 1>(tiles, rows) } else { self.steps::<R, 2>(tiles, rows) }
    }

    #[inline(always)]
    fn steps<const R: usize, const B: usize>(&mut self, tiles: &mut impl Tiles, rows: [&[Tile]; 2]) {
        let len = self.blocks[0].len();
        let (rows, blocks) = (rows.map(|row| &row[..len.min(row.len())]), self.blocks);
        for step in 0..len {
            tiles.load_once::<4>(&rows[0][step]);
            load::<6>(tiles, &blocks[0][step]);
            tiles.multiply::<0, 4, 6>();
            if B > 1 {
                load::<7>(tiles, &blocks[1][step]);
                tiles.multiply::<1, 4, 7>();
            }
            if R > 1 {
                tiles.load_once::<5>(&rows[1][step]);
                tiles.multiply::<2, 5, 6>();
                if B > 1 {
                    tiles.multiply::<3, 5, 7>();
                }
            }
            let asked = self.asked;
            self.asked = (asked + self.pace).min(len * LANES);
            for line in asked..self.asked {
                self.next[..B].iter().for_each(|next| tiles.prefetch(next.wrapping_add(line)));
            }
        }
    }
}

fn load<const T: usize>(tiles: &mut impl Tiles, tile: &Tile) {
    // SAFETY: sixteen lines.
    #[allow(unsafe_code)]
    unsafe {
        tiles.load::<T>(tile.as_ptr().cast(), size_of::<Line>())
    }
}

/// One register's part of the result.
struct Corner<'a> {
    part: &'a Part<'a>,
    row: usize,
    block: usize,
}

#[allow(unsafe_code)]
impl Corner<'_> {
    /// Rows of it that exist.
    fn rows(&self) -> usize {
        ROWS.min(self.part.rows.end - self.row)
    }

    /// Loads the sums of the panel before, or what all sums start from.
    ///
    /// # Safety
    ///
    /// Its rows and columns exist, nobody else accesses them, and they are initialised if they are added to.
    unsafe fn begin<const T: usize>(&self, tiles: &mut impl Tiles, sums: &mut Tile, is_first: bool) {
        let Part { target, start, .. } = *self.part;
        match start {
            _ if !is_first => {}
            Start::Zero => return tiles.zero::<T>(),
            Start::Target if self.rows() == ROWS && target.width(self.block) == LANES => {
                let stride = target.stride() * size_of::<f32>();
                // SAFETY: sixteen whole rows, by the caller's promise.
                return unsafe { tiles.load::<T>(target.at(self.row, self.block), stride) };
            }
            Start::Bias(_) | Start::Target => {
                for (r, sums) in sums[..self.rows()].iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe { start.read(target, self.row + r, self.block, &mut sums.0) };
                }
            }
        }
        load::<T>(tiles, sums);
    }

    /// Keeps the sums for the next panel, or writes them to the target when they are done.
    ///
    /// # Safety
    ///
    /// Its rows and columns exist, and nobody else accesses them.
    unsafe fn end<const T: usize>(&self, tiles: &mut impl Tiles, sums: &mut Tile, is_done: bool) {
        tiles.store::<T>(sums);
        if is_done {
            // SAFETY: the caller's promise.
            unsafe { tiles.write(sums, self.rows(), self.part.target, self.row, self.block) };
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
    use super::{LANES, Line, Target, Tile, Tiles};
    use std::arch::{asm, x86_64::*};

    /// The tile registers of this thread, configured while this lives.
    pub(super) struct Hardware {
        /// Whether results are written past the caches.
        streams: bool,
    }

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
        /// [`super::permitted`] has said yes, and the processor has AVX-512F.
        pub(super) unsafe fn new(streams: bool) -> Hardware {
            // SAFETY: the instruction reads 64 bytes; that it exists is the caller's promise.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
            Hardware { streams }
        }
    }

    impl Drop for Hardware {
        /// Releases the registers. Otherwise the system would save 8 KiB at every switch of threads.
        fn drop(&mut self) {
            // SAFETY: a value exists only where the instruction does.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
            if self.streams {
                // From here on other threads see what was written past the caches.
                // SAFETY: AMX is nowhere without SSE.
                unsafe { _mm_sfence() };
            }
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
        fn load_once<const T: usize>(&mut self, tile: &Tile) {
            let (from, stride) = (tile.as_ptr(), size_of::<Line>());
            // SAFETY: sixteen lines.
            unsafe {
                asm!("tileloaddt1 tmm{}, [{} + {}]", const T, in(reg) from, in(reg) stride, options(nostack, readonly))
            };
        }

        #[inline(always)]
        fn store<const T: usize>(&mut self, tile: &mut Tile) {
            let (to, stride) = (tile.as_mut_ptr(), size_of::<Line>());
            // SAFETY: sixteen lines.
            unsafe { asm!("tilestored [{} + {}], tmm{}", in(reg) to, in(reg) stride, const T, options(nostack)) };
        }

        #[inline(always)]
        fn prefetch(&mut self, line: *const Line) {
            // SAFETY: a prefetch of any address has no effect that a program could see.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
        }

        #[inline(always)]
        unsafe fn write(&mut self, tile: &Tile, rows: usize, target: &Target, row: usize, block: usize) {
            // SAFETY: the caller's promises, and that of `new`.
            unsafe { write(tile, rows, target, row, block, self.streams) };
        }

        #[inline(always)]
        fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
            // SAFETY: a value exists only where the instruction does.
            unsafe {
                asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const LEFT, const RIGHT, options(nostack, nomem))
            };
        }
    }

    /// Writes rows of a tile to a target.
    ///
    /// # Safety
    ///
    /// They exist there, and nobody else accesses them.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(tile: &Tile, rows: usize, target: &Target, row: usize, block: usize, streams: bool) {
        let width = target.width(block);
        for (r, line) in tile[..rows].iter().enumerate() {
            let to = target.at(row + r, block);
            // SAFETY: the line is aligned, and `width` of its floats exist at the row, by the caller's promise. Results
            // are written past the caches only where every row begins at a line (`Target::streams`).
            unsafe {
                let line = _mm512_load_ps(line.0.as_ptr());
                match width {
                    LANES if streams => _mm512_stream_ps(to, line),
                    LANES => _mm512_storeu_ps(to, line),
                    _ => _mm512_mask_storeu_ps(to, (1 << width) - 1, line),
                }
            }
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

    /// The instructions in plain code.
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

        fn load_once<const T: usize>(&mut self, tile: &Tile) {
            load::<T>(self, tile);
        }

        fn store<const T: usize>(&mut self, tile: &mut Tile) {
            *tile = self.0[T].map(Line);
        }

        fn prefetch(&mut self, _line: *const Line) {}

        // SAFETY: the caller promises what `Target::write` asks of it.
        unsafe fn write(&mut self, tile: &Tile, rows: usize, target: &Target, row: usize, block: usize) {
            for (r, line) in tile[..rows].iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { target.write(row + r, block, &line.0) };
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
                let target = Target::new(out.as_mut_ptr(), m, n);
                let start = if accumulate { Start::Target } else { Start::Zero };
                let mut sums = vec![ZERO; super::sums(m)];
                for first in (0..right.blocks()).step_by(COLUMN_BLOCKS) {
                    let (rows, blocks, panel) =
                        (0..m, first..right.blocks().min(first + COLUMN_BLOCKS), 0..left.pairs());
                    let part = Part { left, right, target: &target, rows, blocks, panel, start };
                    let tiles = &mut Plain([[[f32::NAN; LANES]; ROWS]; 8]);
                    // SAFETY: the areas are inside the result and one after the other.
                    #[allow(unsafe_code)]
                    unsafe {
                        fill_with(tiles, &part, &mut sums)
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
