//! AMX in software, for a test on processors without it: a handler of the signal that an unknown
//! instruction raises, which decodes and executes the seven that [`super::x86`] has.
//!
//! They are defined in Intel's manual, volume 2: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD,
//! TILELOADDT1, TILESTORED and TDPBF16PS. What is not exactly one of them, would be refused there, or is another
//! configuration than the unit's own, ends the process. Denormal numbers are kept here, where a
//! processor takes them for zero.
#![allow(unsafe_code)]

use super::{LANES, ROWS};
use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::{
    cell::UnsafeCell,
    mem, ptr,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// The variable that asks for it. The handler is that of a whole process, so the test makes one.
pub(super) const WANTED: &str = "INSTRUCT_EMULATE_AMX";

/// The test that may ask.
pub(super) const TEST: &str = "bf16::amx::tests::the_instructions_make_products_in_an_emulator";

pub(super) fn wanted() -> bool {
    std::env::var_os(WANTED).is_some() && std::env::args().any(|arg| arg == TEST)
}

/// Multiplications of registers so far.
pub(super) fn products() -> usize {
    PRODUCTS.load(Relaxed)
}

static PRODUCTS: AtomicUsize = AtomicUsize::new(0);

/// Takes the signal over.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the structure may be zero; the handler neither allocates nor locks.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, ptr::null_mut()), 0);
        }
    });
}

/// The eight registers of a thread, and whether they are configured as [`super::x86`] does.
struct Registers {
    configured: bool,
    tiles: [[[u8; 64]; ROWS]; 8],
}

// Without a destructor and made without allocating, so that a handler may use it.
thread_local!(static REGISTERS: UnsafeCell<Registers> =
    const { UnsafeCell::new(Registers { configured: false, tiles: [[[0; 64]; ROWS]; 8] }) });

/// Executes the instruction that raised the signal, and goes on after it.
extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of this thread, and nobody else holds it.
    let general = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = general[libc::REG_RIP as usize];
    // SAFETY: each of the seven instructions has five bytes at least, and one that is shorter is in a function of
    // which more follows.
    let code = unsafe { (at as *const [u8; 5]).read() };
    // SAFETY: only this handler knows the registers, and it is not interrupted by itself.
    let registers = REGISTERS.with(|registers| unsafe { &mut *registers.get() });
    let [0xc4, extension, prefix, opcode, form] = code else { refuse("no VEX prefix of three bytes") };
    // Three-byte map 0F38, neither W nor L, and a register below 8.
    if extension & 0b1001_1111 != 0b1000_0010 || prefix & 0b1000_0100 != 0 {
        refuse("another map, width or register");
    }
    let (mode, first, second, third) = (form >> 6, (form >> 3 & 7) as usize, form & 7, (!prefix >> 3 & 15) as usize);
    let memory = || Operand::decode(at, extension, general);
    let ready = registers.configured;
    let length = match (opcode, prefix & 3, mode) {
        (0x49, 0, 3) if form == 0xc0 && third == 0 => {
            registers.configured = false;
            5
        }
        (0x49, 0, 0..3) if first == 0 && third == 0 => {
            let operand = memory();
            // SAFETY: the instruction reads 64 bytes.
            registers.configure(unsafe { &*(operand.base.wrapping_add(operand.index) as *const [u8; 64]) });
            operand.length
        }
        (0x49, 3, 3) if ready && second == 0 && third == 0 => {
            registers.tiles[first] = [[0; 64]; ROWS];
            5
        }
        (0x4b, direction @ 1..=3, 0..3) if ready && second == 4 && third == 0 => {
            let operand = memory();
            for (r, row) in registers.tiles[first].iter_mut().enumerate() {
                let there = operand.base.wrapping_add(operand.index.wrapping_mul(r)) as *mut [u8; 64];
                // SAFETY: the instruction reads or writes these bytes.
                unsafe { if direction == 2 { there.write_unaligned(*row) } else { *row = there.read_unaligned() } }
            }
            operand.length
        }
        (0x5c, 2, 3) if ready && third < 8 && extension & 0b0010_0000 != 0 => {
            registers.multiply(first, second as usize, third);
            5
        }
        _ => refuse("another instruction, or registers that are not configured"),
    };
    general[libc::REG_RIP as usize] = at + length;
}

impl Registers {
    /// Accepts palette 1 with sixteen rows of 64 bytes in every register, and nothing else in the bytes.
    fn configure(&mut self, bytes: &[u8; 64]) {
        let wanted = |i: usize| match i {
            0 => 1,
            16..32 if i.is_multiple_of(2) => 64,
            48..56 => 16,
            _ => 0,
        };
        if self.configured || !bytes.iter().enumerate().all(|(i, byte)| *byte == wanted(i)) {
            refuse("another configuration, or a second one");
        }
        *self = Registers { configured: true, tiles: [[[0; 64]; ROWS]; 8] };
    }

    /// TDPBF16PS: the earlier and the later members of pairs are added up separately, then both to the sum.
    fn multiply(&mut self, sums: usize, left: usize, right: usize) {
        if sums == left || left == right || sums == right {
            refuse("a register twice");
        }
        PRODUCTS.fetch_add(1, Relaxed);
        let bf16 = |row: &[u8; 64], i: usize| f32::from_le_bytes([0, 0, row[2 * i], row[2 * i + 1]]);
        for m in 0..ROWS {
            let mut parts = [[0.0f32; 2]; LANES];
            for k in 0..LANES {
                let (a, b) = (&self.tiles[left][m], &self.tiles[right][k]);
                for (n, parts) in parts.iter_mut().enumerate() {
                    for (i, part) in parts.iter_mut().enumerate() {
                        *part = bf16(a, 2 * k + i).mul_add(bf16(b, 2 * n + i), *part);
                    }
                }
            }
            for (sum, [earlier, later]) in self.tiles[sums][m].as_chunks_mut::<4>().0.iter_mut().zip(parts) {
                *sum = (f32::from_le_bytes(*sum) + (earlier + later)).to_le_bytes();
            }
        }
    }
}

/// An address: of the first row, and from one row to the next.
struct Operand {
    base: usize,
    index: usize,
    /// Bytes of the whole instruction.
    length: i64,
}

impl Operand {
    /// What ModRM, SIB and displacement of the instruction at an address say.
    fn decode(at: i64, extension: u8, general: &[i64; 23]) -> Operand {
        /// General registers in the order of their numbers.
        const ORDER: [c_int; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        // The extensions are stored inverted: bit 6 that of the index, bit 5 that of the base.
        let extended = |low: u8, bit: u8| (low & 7 | (!extension >> bit & 1) << 3) as usize;
        let value = |register: usize| general[ORDER[register] as usize] as usize;
        // SAFETY: only bytes that the instruction has are asked for.
        let code = |i: i64| unsafe { *((at + i) as *const u8) };
        let (mode, low) = (code(4) >> 6, code(4) & 7);
        let (mut length, mut base, mut index) = (5, low, 0);
        if low == 4 {
            base = code(5);
            let register = extended(base >> 3, 6);
            index = if register == 4 { 0 } else { value(register) << (base >> 6) };
            length = 6;
        }
        if mode == 0 && base & 7 == 5 {
            refuse("an address without a register");
        }
        let displacement = match mode {
            0 => 0,
            1 => i64::from(code(length) as i8),
            _ => refuse("a displacement of four bytes"),
        };
        let base = value(extended(base, 5)).wrapping_add(displacement as usize);
        Operand { base, index, length: length + i64::from(mode == 1) }
    }
}

/// Ends the process: a handler must not panic.
fn refuse(why: &str) -> ! {
    // SAFETY: both calls are among those that a handler may make.
    unsafe {
        libc::write(2, why.as_ptr().cast(), why.len());
        libc::abort()
    }
}
