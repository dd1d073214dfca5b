//! MPI, opened while the program runs: Open MPI and MPICH (with it Intel's, Cray's and MVAPICH's, which share its ABI).
//!
//! The two differ in what a handle is: an address in Open MPI, a number in MPICH. Everything else is generic over that.
//! Operations are the ones that return at once, and are asked from time to time whether they are done: a call that waits
//! would keep a core busy that the backward pass needs.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use super::{Group, Launch, Values};
use crate::error::{Error, Result};

/// The thread that initialises MPI makes all calls.
const FUNNELED: c_int = 1;
/// No MPI has longer names or messages (Open MPI: 256, MPICH: 512).
const TEXT: usize = 1024;
/// How often an operation is looked at before the thread sleeps in between.
const EAGER: u32 = 16;
const PAUSE: Duration = Duration::from_micros(50);

/// The functions and constants that are used, with handles of type `H`.
struct Api<H> {
    world: H,
    float: H,
    short: H,
    byte: H,
    add: H,
    in_place: *mut c_void,
    ignore: *mut c_void,
    initialized: unsafe extern "C" fn(*mut c_int) -> c_int,
    init: unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    place: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    explain: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    on_error: unsafe extern "C" fn(H, H) -> c_int,
    errors_return: H,
    reduce: unsafe extern "C" fn(*const c_void, *mut c_void, c_int, H, H, H, *mut H) -> c_int,
    #[allow(clippy::type_complexity)]
    exchange: unsafe extern "C" fn(
        *const c_void,
        *const c_int,
        *const c_int,
        H,
        *mut c_void,
        *const c_int,
        *const c_int,
        H,
        H,
        *mut H,
    ) -> c_int,
    #[allow(clippy::type_complexity)]
    gather: unsafe extern "C" fn(
        *const c_void,
        c_int,
        H,
        *mut c_void,
        *const c_int,
        *const c_int,
        H,
        H,
        *mut H,
    ) -> c_int,
    broadcast: unsafe extern "C" fn(*mut c_void, c_int, H, c_int, H, *mut H) -> c_int,
    barrier: unsafe extern "C" fn(H, *mut H) -> c_int,
    test: unsafe extern "C" fn(*mut H, *mut c_int, *mut c_void) -> c_int,
    no_request: H,
}

struct Mpi<H> {
    api: Api<H>,
    rank: usize,
    size: usize,
    place: String,
    patience: Duration,
    /// Between initialisation and its end.
    open: bool,
}

/// Opens the library that goes with `launch` and initialises it; this thread is the one that may use it.
///
/// # Errors
/// No library, or one that counts another number of processes than the launcher.
pub fn open(launch: &Launch) -> Result<Box<dyn Group>> {
    let names = launch.libraries();
    let mut tried = Vec::new();
    let found = names.iter().find_map(|name| {
        // SAFETY: opening runs the library's initialisers. It is MPI's, by its name or by the user's word; and it is never
        // closed, as its threads may outlive the last call. Open MPI's plug-ins find its symbols only where they are global.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => Some((name, &*Box::leak(Box::new(library)))),
            Err(error) => {
                tried.push(format!("{} ({error})", name.display()));
                None
            }
        }
    });
    let Some((name, library)) = found else {
        return Err(Error::usage(format!(
            "{} says that an MPI launcher started this process, and no MPI library could be opened: {}; TERNLM_MPI=PATH names \
             one",
            launch.variable,
            tried.join(", ")
        )));
    };
    // SAFETY: the symbols have the types that the MPI standard and the ABI of the one or the other library give them
    // (`mpi.h`); Open MPI alone has `ompi_mpi_comm_world`.
    unsafe {
        match library.get::<*mut c_void>(b"ompi_mpi_comm_world") {
            Ok(_) => start(open_mpi(library, name)?, launch, name),
            Err(_) => start(mpich(library, name)?, launch, name),
        }
    }
}

fn lacks(name: &OsString, error: libloading::Error) -> Error {
    Error::usage(format!("{}: found no MPI 3 library ({error})", name.display()))
}

/// # Safety
/// `library` is Open MPI's.
unsafe fn open_mpi(library: &Library, name: &OsString) -> Result<Api<*mut c_void>> {
    // A handle is the address of a variable of the library.
    let handle = |symbol: &str| -> Result<*mut c_void> {
        // SAFETY: its address alone is taken.
        let found = unsafe { library.get::<*mut c_void>(symbol.as_bytes()) };
        Ok(found.map_err(|e| lacks(name, e))?.into_raw().cast())
    };
    let handles = Handles {
        world: handle("ompi_mpi_comm_world")?,
        float: handle("ompi_mpi_float")?,
        short: handle("ompi_mpi_short")?,
        byte: handle("ompi_mpi_byte")?,
        add: handle("ompi_mpi_op_sum")?,
        errors_return: handle("ompi_mpi_errors_return")?,
        no_request: handle("ompi_request_null")?,
        in_place: 1,
        ignore: 0,
    };
    // SAFETY: by the caller.
    unsafe { functions(library, name, handles) }
}

/// # Safety
/// `library` has MPICH's ABI.
unsafe fn mpich(library: &Library, name: &OsString) -> Result<Api<c_int>> {
    let handles = Handles {
        world: 0x4400_0000,
        float: 0x4c00_040a,
        short: 0x4c00_0203,
        byte: 0x4c00_010d,
        add: 0x5800_0003,
        errors_return: 0x5400_0001,
        no_request: 0x2c00_0000,
        in_place: -1,
        ignore: 1,
    };
    // SAFETY: by the caller.
    unsafe { functions(library, name, handles) }
}

struct Handles<H> {
    world: H,
    float: H,
    short: H,
    byte: H,
    add: H,
    errors_return: H,
    no_request: H,
    in_place: isize,
    ignore: isize,
}

/// # Safety
/// `library` is an MPI whose handles are of type `H`.
unsafe fn functions<H>(library: &Library, name: &OsString, h: Handles<H>) -> Result<Api<H>> {
    macro_rules! function {
        ($symbol:literal) => {
            // SAFETY: the field that it is put into has the type that MPI's standard gives the function.
            *unsafe { library.get($symbol) }.map_err(|e| lacks(name, e))?
        };
    }
    Ok(Api {
        world: h.world,
        float: h.float,
        short: h.short,
        byte: h.byte,
        add: h.add,
        errors_return: h.errors_return,
        no_request: h.no_request,
        in_place: h.in_place as *mut c_void,
        ignore: h.ignore as *mut c_void,
        initialized: function!(b"MPI_Initialized"),
        init: function!(b"MPI_Init_thread"),
        finalize: function!(b"MPI_Finalize"),
        abort: function!(b"MPI_Abort"),
        rank: function!(b"MPI_Comm_rank"),
        size: function!(b"MPI_Comm_size"),
        place: function!(b"MPI_Get_processor_name"),
        explain: function!(b"MPI_Error_string"),
        on_error: function!(b"MPI_Comm_set_errhandler"),
        reduce: function!(b"MPI_Iallreduce"),
        exchange: function!(b"MPI_Ialltoallv"),
        gather: function!(b"MPI_Iallgatherv"),
        broadcast: function!(b"MPI_Ibcast"),
        barrier: function!(b"MPI_Ibarrier"),
        test: function!(b"MPI_Test"),
    })
}

/// # Safety
/// `api` is that of the library.
unsafe fn start<H: Copy + 'static>(api: Api<H>, launch: &Launch, name: &OsString) -> Result<Box<dyn Group>> {
    let (mut level, mut rank, mut size, mut len, mut before) = (0, 0, 0, 0, 0);
    let mut text = [0 as c_char; TEXT];
    // SAFETY: this one may be called at any time; the pointer is to a variable.
    if unsafe { (api.initialized)(&mut before) } != 0 || before != 0 {
        return Err(Error::usage(format!(
            "{}: found MPI in use in this process already (by a training before this one, or by another library), wanted one \
             training a process",
            name.display()
        )));
    }
    // SAFETY: the pointers are to variables that outlive the calls, the text is longer than MPI's longest; a program may
    // initialise without its arguments. `text` ends with a zero, as it was zeros.
    let (codes, place) = unsafe {
        let first = (api.init)(null_mut(), null_mut(), FUNNELED, &mut level);
        if first != 0 {
            return Err(Error::usage(format!("{}: MPI_Init_thread: found error {first}", name.display())));
        }
        let codes = [
            (api.on_error)(api.world, api.errors_return),
            (api.rank)(api.world, &mut rank),
            (api.size)(api.world, &mut size),
            (api.place)(text.as_mut_ptr(), &mut len),
        ];
        (codes, CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    };
    let place = format!("{place}, PID {}", std::process::id());
    let mut mpi =
        Mpi { api, rank: rank as usize, size: size as usize, place, patience: Duration::MAX, open: true };
    if codes.iter().any(|code| *code != 0) || level < FUNNELED {
        mpi.finish()?;
        let found = format!("errors {codes:?} and thread level {level}");
        return Err(Error::usage(format!(
            "{}: MPI_Init_thread: found {found}, wanted MPI_THREAD_FUNNELED",
            name.display()
        )));
    }
    if let Some(wanted) = launch.size.filter(|wanted| *wanted != mpi.size) {
        let found = mpi.size;
        mpi.finish()?;
        return Err(Error::usage(format!(
            "{}: found {found} process, wanted the {wanted} that the launcher started: library and launcher are of two MPIs; \
             TERNLM_MPI=PATH names the library that goes with this launcher",
            name.display()
        )));
    }
    Ok(Box::new(mpi))
}

impl<H: Copy> Mpi<H> {
    /// Ends the job: what MPI still does holds memory of ours, so nothing here may go on.
    fn give_up(&self, text: &str) -> ! {
        let (rank, size, place) = (self.rank, self.size, &self.place);
        eprintln!("error: process {rank} of {size} ({place}): {}", text.replace(char::is_control, " "));
        // Where other machines cannot be reached, to tell them may take for ever.
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(5));
            std::process::exit(1);
        });
        // SAFETY: initialised, and on the thread that did.
        unsafe { (self.api.abort)(self.api.world, 1) };
        std::process::exit(1);
    }

    fn check(&self, what: &str, code: c_int) {
        if code == 0 {
            return;
        }
        let (mut text, mut len) = ([0 as c_char; TEXT], 0);
        // SAFETY: the text is longer than MPI's longest, and ends with a zero, as it was zeros.
        let text = unsafe {
            (self.api.explain)(code, text.as_mut_ptr(), &mut len);
            CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
        };
        self.give_up(&format!("{what} failed: {text}"));
    }

    /// Waits for what `begin` has begun; on return MPI has no hold on its memory.
    fn wait(&self, what: &str, begin: impl FnOnce(*mut H) -> c_int) -> Result<()> {
        let mut request = self.api.no_request;
        self.check(what, begin(&mut request));
        let start = Instant::now();
        for round in 0u32.. {
            let mut done = 0;
            // SAFETY: the request is the one that was begun, or none any more once it is done.
            self.check(what, unsafe { (self.api.test)(&mut request, &mut done, self.api.ignore) });
            if done != 0 {
                break;
            }
            if round < EAGER {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(PAUSE);
            if start.elapsed() > self.patience {
                self.give_up(&format!(
                    "found no answer from the other processes for {} s (--patience): one of them, its machine or the network is \
                     gone, or slower than that; the training goes on from its last checkpoint with --resume",
                    self.patience.as_secs()
                ));
            }
        }
        Ok(())
    }

    /// Where values are, and of what type.
    fn raw(&self, values: &mut Values<'_>) -> (*mut c_void, H) {
        match values {
            Values::F32(x) => (x.as_mut_ptr().cast(), self.api.float),
            Values::Bf16(x) => (x.as_mut_ptr().cast(), self.api.short),
            Values::Bytes(x) => (x.as_mut_ptr().cast(), self.api.byte),
        }
    }
}

/// A number of values, as MPI counts.
fn count(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or_else(|_| panic!("{n} values at once, MPI counts to {}", c_int::MAX))
}

/// Lengths and first values of parts, all of which must lie in `len` values.
fn counts(parts: &[Range<usize>], size: usize, len: usize) -> (Vec<c_int>, Vec<c_int>) {
    assert_eq!(parts.len(), size, "parts for {size} processes");
    assert!(parts.iter().all(|p| p.start <= p.end && p.end <= len), "parts {parts:?} of {len} values");
    (parts.iter().map(|p| count(p.len())).collect(), parts.iter().map(|p| count(p.start)).collect())
}

impl<H: Copy> Group for Mpi<H> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        let (api, n) = (&self.api, count(values.len()));
        // SAFETY: `n` f32 are read and written at the address of a slice of as many, which is borrowed until they are done.
        self.wait("MPI_Iallreduce", |request| unsafe {
            (api.reduce)(api.in_place, values.as_mut_ptr().cast(), n, api.float, api.add, api.world, request)
        })
    }

    fn exchange(&mut self, mut from: Values<'_>, parts: &[Range<usize>], mut to: Values<'_>) -> Result<()> {
        let (lens, starts) = counts(parts, self.size, from.len());
        let own = parts[self.rank].len();
        assert_eq!(to.len(), own * self.size, "room for {} parts of {own} values", self.size);
        let (to_lens, to_starts): (Vec<c_int>, Vec<c_int>) =
            (0..self.size).map(|rank| (count(own), count(rank * own))).unzip();
        let (api, (from, kind), (to, to_kind)) = (&self.api, self.raw(&mut from), self.raw(&mut to));
        // SAFETY: parts lie inside of the slices (`counts`, and the assertion), whose values have the types that are named; all
        // are borrowed until it is done. The callers exchange values of one type.
        self.wait("MPI_Ialltoallv", |request| unsafe {
            (api.exchange)(
                from,
                lens.as_ptr(),
                starts.as_ptr(),
                kind,
                to,
                to_lens.as_ptr(),
                to_starts.as_ptr(),
                to_kind,
                api.world,
                request,
            )
        })
    }

    fn gather(&mut self, mut all: Values<'_>, parts: &[Range<usize>]) -> Result<()> {
        let (lens, starts) = counts(parts, self.size, all.len());
        let (api, (at, kind)) = (&self.api, self.raw(&mut all));
        // SAFETY: as in `exchange`; in place, the own part is where it belongs.
        self.wait("MPI_Iallgatherv", |request| unsafe {
            (api.gather)(api.in_place, 0, kind, at, lens.as_ptr(), starts.as_ptr(), kind, api.world, request)
        })
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<()> {
        let (api, n) = (&self.api, count(bytes.len()));
        // SAFETY: `n` bytes at the address of a slice of as many, which is borrowed until it is done.
        self.wait("MPI_Ibcast", |request| unsafe {
            (api.broadcast)(bytes.as_mut_ptr().cast(), n, api.byte, 0, api.world, request)
        })
    }

    fn barrier(&mut self) -> Result<()> {
        let api = &self.api;
        // SAFETY: no memory but the request's.
        self.wait("MPI_Ibarrier", |request| unsafe { (api.barrier)(api.world, request) })
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn finish(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            // SAFETY: initialised, on the thread that did, and nothing is under way.
            let code = unsafe { (self.api.finalize)() };
            if code != 0 {
                return Err(Error::usage(format!("MPI_Finalize: found error {code}")));
            }
        }
        Ok(())
    }

    fn abort(&mut self, text: &str) {
        self.give_up(text);
    }
}
