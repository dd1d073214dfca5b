//! The two signals, and the way out for what is not ours.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

use crate::decode::{Instruction, Registers};
use crate::{bf16, cpuid, tiles};

/// Bytes of the CPUID instruction.
const CPUID: [u8; 2] = [0x0F, 0xA2];
/// What the system gives as the reason for a general protection fault, which CPUID then is.
const SI_KERNEL: c_int = 0x80;
const UD2: [u8; 2] = [0x0F, 0x0B];
/// Bytes of an unknown instruction that are shown.
const SHOWN: usize = 11;

static BEHIND_UD2: AtomicBool = AtomicBool::new(false);

/// From now on `ud2` and an instruction behind it is that instruction, emulated: for tests on a processor that has it,
/// though CPUID may deny it. A program that calls this has the crate linked, with its constructor.
pub fn emulate_behind_ud2() {
    BEHIND_UD2.store(true, Ordering::Relaxed);
}

pub fn take_over() {
    handle(libc::SIGILL, on_unknown_instruction, 0);
    // Stacks that overflow cannot hold the signal's own frame.
    handle(libc::SIGSEGV, on_fault, libc::SA_ONSTACK);
}

pub fn give_back() {
    give_up(libc::SIGILL);
    give_up(libc::SIGSEGV);
}

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn handle(signal: c_int, handler: Handler, flags: c_int) {
    // SAFETY: a handler of the kind that the flags say.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | flags;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// The signal does what it does without this crate, when the instruction is met again.
fn give_up(signal: c_int) {
    // SAFETY: an action of the system.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

extern "C" fn on_unknown_instruction(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands a handler of this kind the registers that it stopped at; bytes are read as the
    // processor had read them.
    let done = unsafe {
        let mut registers = Registers::new(context.cast::<ucontext_t>());
        let marked = BEHIND_UD2.load(Ordering::Relaxed) && *registers.instruction().cast::<[u8; 2]>() == UD2;
        let before = if marked { UD2.len() as isize } else { 0 };
        registers.skip(before);
        let done = match Instruction::decode(&registers) {
            Some(instruction) => {
                let done = match instruction.evex {
                    None => tiles::run(&instruction, registers.place_of(&instruction)),
                    Some(evex) => bf16::run(&instruction, evex, &mut registers),
                };
                done.map(|()| registers.skip(instruction.length as isize))
            }
            None => Err("an instruction that is not emulated"),
        };
        if done.is_err() {
            registers.skip(-before);
        }
        done
    };
    if let Err(why) = done {
        // One thread's message is enough, and whole.
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            // SAFETY: as above.
            let at = unsafe { Registers::new(context.cast::<ucontext_t>()).instruction() };
            say(format_args!("{why}:{}", Bytes(at)));
        }
        give_up(signal);
    }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as above. What faults for the system's reason was fetched, so that it can be read.
    unsafe {
        let mut registers = Registers::new(context.cast::<ucontext_t>());
        if (*info).si_code == SI_KERNEL && *registers.instruction().cast::<[u8; 2]>() == CPUID {
            registers.cpuid(cpuid::answer);
            registers.skip(CPUID.len() as isize);
            return;
        }
    }
    give_up(signal);
}

/// The bytes of an instruction.
struct Bytes(*const u8);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The next page may not be there.
        let here = SHOWN.min(4096 - self.0 as usize % 4096);
        // SAFETY: on the page of an instruction.
        (0..here).try_for_each(|i| write!(f, " {:02x}", unsafe { *self.0.add(i) }))
    }
}

/// A line on standard error, without memory from the heap: the program may have stopped anywhere.
pub fn say(what: fmt::Arguments<'_>) {
    let mut line = Line { text: [0; 200], length: 0 };
    let _ = writeln!(line, "ternlm-amx: {what}");
    // SAFETY: so many bytes of the line.
    unsafe { libc::write(2, line.text.as_ptr().cast(), line.length) };
}

/// As much of a text as there is room for.
struct Line {
    text: [u8; 200],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.text.len() - self.length;
        let some = text.len().min(room);
        self.text[self.length..][..some].copy_from_slice(&text.as_bytes()[..some]);
        self.length += some;
        Ok(())
    }
}
