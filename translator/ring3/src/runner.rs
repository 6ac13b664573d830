//! Enters fragments and follows their exits.

use crate::Error;
use crate::enter::{RunFrame, ub_ring3_enter, ub_ring3_exit};
use crate::loaded::Loaded;
use crate::signals::{self, Fault, greg};
use crate::state::{CpuState, USER_FLAGS, gpr};
use crate::table::{Entry, FragmentTable, Lookup};
use crate::xsave::{AREA_BYTES, Area, Layout};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use ub_translator::fragment::{Exit, ExitId, ExitKind};
use ub_translator::frame;

/// The words that polls read, standing for the kernel's work flags and
/// pending softirqs. Another thread may set them at any time.
#[derive(Debug, Default)]
pub struct PollWords {
    /// The thread's work flags, tested under [`PollWords::MASK`]. Eight bytes
    /// apart from nothing else: a poll loads 32 bits.
    pub flags: AtomicU32,
    /// The CPU's pending softirqs.
    pub softirq: AtomicU16,
}

impl PollWords {
    /// The flags that end a ride.
    pub const MASK: u32 = 0x0000_300e;

    /// No work is pending any more.
    pub fn clear(&self) {
        self.flags.store(0, Ordering::SeqCst);
        self.softirq.store(0, Ordering::SeqCst);
    }
}

/// How a fragment was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Which exit, as the fragment wrote it.
    pub id: ExitId,
    /// That exit.
    pub exit: Exit,
    /// The frame's `target`; of meaning for [`ExitKind::Indirect`] only.
    pub target: u64,
    /// The last fault that a fixup caught on the way, if any.
    pub fault: Option<Fault>,
}

impl Entered {
    /// User address at which the program goes on.
    #[must_use]
    pub fn next_ip(&self) -> u64 {
        if self.exit.kind == ExitKind::Indirect { self.target } else { self.exit.user_ip }
    }
}

/// A fragment broke its contract: in ring 0 this would have been an oops. No
/// verified fragment may cause it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UncaughtFault {
    /// A signal at an instruction without a fixup.
    #[error("signal {0:?} at an instruction of the fragment without a fixup")]
    Signal(Fault),
    /// The exit id names no exit.
    #[error("the fragment wrote exit id {0}, which does not exist")]
    ExitId(u32),
}

/// How a chain of fragments ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The exit that was not followed.
    pub last: Entered,
    /// How many fragments were entered.
    pub entered: u64,
}

/// Memory below the frame that a stray signal without the alternate stack
/// may use, and the stubs' `pushfq`.
const HEADROOM: usize = 64 << 10;
/// The trap flag, and the `si_code` of its signal.
const TF: u64 = 1 << 8;
const TRAP_TRACE: i32 = 2;

#[repr(C, align(64))]
struct Stack {
    headroom: [u8; HEADROOM],
    frame: RunFrame,
    area: Area,
}

/// What the signal handler must know while a fragment runs.
pub(crate) struct Active {
    loaded: *const Loaded,
    frame: *mut RunFrame,
    caught: Cell<Option<Fault>>,
    uncaught: Cell<Option<Fault>>,
    /// Instructions of the fragment until work is pending; 0 for never.
    steps: Cell<u64>,
    words: *const PollWords,
}

thread_local! {
    static ACTIVE: Cell<*const Active> = const { Cell::new(std::ptr::null()) };
}

/// Runs fragments on the thread that made it.
pub struct Runner {
    stack: Box<Stack>,
    words: Arc<PollWords>,
    raise_after: u64,
    /// Instructions of a fragment before a poll leaves.
    budget: i32,
    layout: Layout,
    /// Signal stack and fixup state are per thread.
    not_send: PhantomData<*const ()>,
}

impl Runner {
    /// Sets up the frame and this thread's signal handling.
    ///
    /// # Errors
    /// If the kernel refuses, or the CPU has no XSAVE.
    pub fn new() -> Result<Self, Error> {
        signals::install()?;
        let layout = Layout::get()?;
        // SAFETY: integers and byte arrays, for which zero is a valid value;
        // the allocation is created in place, `Stack` being large.
        let stack = unsafe { Box::<Stack>::new_zeroed().assume_init() };
        Ok(Self {
            stack,
            words: Arc::default(),
            raise_after: 0,
            // Less than all, so that one which was written over shows.
            budget: 1 << 30,
            layout,
            not_send: PhantomData,
        })
    }

    /// The words that polls of this runner's fragments read.
    #[must_use]
    pub fn poll_words(&self) -> Arc<PollWords> {
        Arc::clone(&self.words)
    }

    /// Work becomes pending when the next fragment has executed `steps`
    /// instructions: the same moment every time, unlike from another thread.
    /// It is stepped through, which costs a signal for each. 0 undoes it.
    pub fn raise_poll_after(&mut self, steps: u64) {
        self.raise_after = steps;
    }

    /// From now on, polls leave once about so many instructions were executed.
    pub fn limit_budget(&mut self, instructions: i32) {
        self.budget = instructions;
    }

    /// Addresses that stand for kernel data here: the frame with what is
    /// around it, and the words that polls read. A fragment that lets the
    /// user see one of them, or its own address, would leak in ring 0.
    #[must_use]
    pub fn private_ranges(&self) -> [Range<u64>; 2] {
        let stack = &raw const *self.stack as u64;
        let words = Arc::as_ptr(&self.words) as u64;
        [stack..stack + size_of::<Stack>() as u64, words..words + size_of::<PollWords>() as u64]
    }

    /// Fills what a fragment must write before it reads, or before it leaves,
    /// with addresses of [`Self::private_ranges`], so that they show up where
    /// it does not.
    pub fn poison_frame(&mut self) {
        let private = self.private_ranges()[0].start;
        self.stack.frame.spill = std::array::from_fn(|slot| private + slot as u64);
        self.stack.frame.target = private;
    }

    /// Whether the last fragment kept to the parts of the frame that are its
    /// to write: what it may only read, what lies behind it, and the memory
    /// in front of it are unchanged. In ring 0 that is the kernel's stack.
    #[must_use]
    pub fn frame_is_intact(&self) -> bool {
        let f = &self.stack.frame;
        // The stubs push the flags into the last eight bytes of the headroom.
        let untouched = self.stack.headroom[..HEADROOM - 8].iter().all(|&b| b == 0);
        untouched
            && f.poll_flags == self.words.flags.as_ptr() as u64
            && f.poll_softirq == self.words.softirq.as_ptr() as u64
            && f.poll_mask == PollWords::MASK
            && (-(frame::WORK_LIMIT as i32)..=self.budget).contains(&f.budget)
            && f.xsave_area == self.stack.area.0.as_ptr() as u64
            && (f.xsave_mask == 0 || f.xsave_mask == self.layout.mask)
    }

    /// Runs one fragment with all of `state`, vector registers included, and
    /// puts the state at the exit back into it.
    ///
    /// # Errors
    /// If the fragment broke the contract in a way that could be caught.
    ///
    /// # Safety
    /// The fragment reaches any memory of this process whose address the
    /// state, the guest's memory or its constants give it. It must be
    /// verified, or known to keep to the contract, and those addresses must
    /// lie in memory that the caller lets it use or in no mapping at all.
    pub unsafe fn enter(
        &mut self,
        loaded: &Loaded,
        state: &mut CpuState,
    ) -> Result<Entered, UncaughtFault> {
        self.layout.store(&state.vectors, &mut self.stack.area.0);
        self.stack.frame.xsave_mask = self.layout.mask;
        // SAFETY: passed on to the caller.
        let result =
            unsafe { self.enter_with_lookup(loaded, state, std::ptr::null(), std::ptr::null()) };
        self.layout.load(&self.stack.area.0, &mut state.vectors);
        result
    }

    /// Runs fragments one after the other, as [`Self::run_chain`] does, without
    /// returning to Rust between them: vector registers pass from one to the
    /// next untouched, and going on costs about what it costs in a ride. At
    /// the start they are whatever the host had in them. BRANCH and INDIRECT
    /// exits are followed, others end it. `None` if `table` has no fragment
    /// for `start`.
    ///
    /// # Errors
    /// As [`Self::enter`].
    ///
    /// # Safety
    /// As [`Self::enter`], for every fragment of `table`. The fragments must
    /// not go round for ever.
    #[inline]
    pub unsafe fn ride(
        &mut self,
        table: &FragmentTable,
        start: u64,
        state: &mut CpuState,
    ) -> Result<Option<Chain>, UncaughtFault> {
        let entry = table.find(start);
        if entry.is_null() {
            return Ok(None);
        }
        self.stack.frame.xsave_mask = 0;
        // SAFETY: entries of a table point at its fragments. The rest is
        // passed on to the caller.
        let last = unsafe {
            let loaded = &*(*entry).loaded.cast::<Loaded>();
            self.enter_with_lookup(loaded, state, entry, table.lookup())?
        };
        Ok(Some(Chain { last, entered: self.stack.frame.followed + 1 }))
    }

    /// Enters `loaded`, which `current` is the table entry of if `lookup` is
    /// not null.
    ///
    /// # Safety
    /// As [`Self::enter`], for every fragment that `lookup` leads to.
    #[inline]
    unsafe fn enter_with_lookup(
        &mut self,
        mut loaded: &Loaded,
        state: &mut CpuState,
        current: *const Entry,
        lookup: *const Lookup,
    ) -> Result<Entered, UncaughtFault> {
        let area = self.stack.area.0.as_ptr() as u64;
        let frame: *mut RunFrame = &raw mut self.stack.frame;
        let steps = std::mem::take(&mut self.raise_after);
        let active = Active {
            loaded,
            frame,
            caught: Cell::new(None),
            uncaught: Cell::new(None),
            steps: Cell::new(steps),
            words: Arc::as_ptr(&self.words),
        };
        let trap = if steps == 0 { 0 } else { TF };
        // SAFETY: `frame` points into the box that this runner owns and
        // borrows exclusively. The stub returns with the callee-saved state
        // intact whatever the fragment did to registers. `active` outlives
        // the call. What the fragment does to memory is the caller's promise.
        unsafe {
            let f = &mut *frame;
            f.user_rsp = state.gpr[gpr::RSP];
            f.user_r11 = state.gpr[gpr::R11];
            f.poll_flags = self.words.flags.as_ptr() as u64;
            f.poll_softirq = self.words.softirq.as_ptr() as u64;
            f.poll_mask = PollWords::MASK;
            f.exit_id = u32::MAX;
            f.budget = self.budget;
            f.code = loaded.address();
            f.xsave_area = area;
            f.rflags = state.rflags & USER_FLAGS | 0x202 | trap;
            f.gpr = state.gpr;
            f.lookup = lookup;
            f.current = current;
            f.followed = 0;
            ACTIVE.set(&active);
            ub_ring3_enter(frame);
            ACTIVE.set(std::ptr::null());
        }
        // SAFETY: the stub has returned; nothing else refers to the frame.
        let frame = unsafe { &*frame };
        state.gpr = frame.gpr;
        state.gpr[gpr::RSP] = frame.user_rsp;
        state.rflags = frame.rflags & USER_FLAGS;
        if let Some(fault) = active.uncaught.get() {
            return Err(UncaughtFault::Signal(fault));
        }
        if !frame.lookup.is_null() {
            // SAFETY: the stub stores only entries of the table, which the
            // caller of `ride` keeps borrowed.
            loaded = unsafe { &*(*frame.current).loaded.cast() };
        }
        let id = frame.exit_id;
        let exit = loaded.parts().exits.get(id as usize).ok_or(UncaughtFault::ExitId(id))?;
        Ok(Entered {
            id: ExitId(id),
            exit: *exit,
            target: frame.target,
            fault: active.caught.get(),
        })
    }

    /// Runs fragments one after the other, as the kernel's ride loop does:
    /// `lookup` gives the fragment for a user address; BRANCH, INDIRECT and
    /// POLL exits are followed until `lookup` has none for the next address,
    /// another exit is taken or `limit` fragments were entered. The pending
    /// work that a POLL exit reports counts as done: the words are cleared.
    /// `None` if there is no fragment for `start`.
    ///
    /// # Errors
    /// As [`Self::enter`].
    ///
    /// # Safety
    /// As [`Self::enter`], for every fragment that `lookup` returns.
    pub unsafe fn run_chain(
        &mut self,
        start: u64,
        state: &mut CpuState,
        limit: u64,
        lookup: &mut dyn FnMut(u64) -> Option<Rc<Loaded>>,
    ) -> Result<Option<Chain>, UncaughtFault> {
        let Some(mut loaded) = lookup(start) else { return Ok(None) };
        let mut entered = 0;
        loop {
            // SAFETY: passed on to the caller.
            let last = unsafe { self.enter(&loaded, state)? };
            entered += 1;
            let follow =
                matches!(last.exit.kind, ExitKind::Branch | ExitKind::Indirect | ExitKind::Poll);
            if !follow || entered >= limit {
                return Ok(Some(Chain { last, entered }));
            }
            if last.exit.kind == ExitKind::Poll {
                self.words.clear();
            }
            match lookup(last.next_ip()) {
                Some(next) => loaded = next,
                None => return Ok(Some(Chain { last, entered })),
            }
        }
    }
}

const _: () = assert!(std::mem::size_of::<Area>() == AREA_BYTES);

/// Handles a signal raised by the running fragment. Returns false if none is
/// running or the signal came from elsewhere.
///
/// # Safety
/// Only to be called by the signal handler, with the context it was given.
pub(crate) unsafe fn on_signal(fault: Fault, context: &mut libc::ucontext_t) -> bool {
    let active = ACTIVE.get();
    if active.is_null() {
        return false;
    }
    // SAFETY: non-null only between the two stores in `enter_with_lookup`,
    // during which `active` and what it points at are alive, a table of
    // fragments included.
    let (active, loaded) = unsafe {
        let (active, frame) = (&*active, &*(*active).frame);
        let loaded =
            if frame.lookup.is_null() { active.loaded } else { (*frame.current).loaded.cast() };
        (active, &*loaded)
    };
    let gregs = &mut context.uc_mcontext.gregs;
    if (fault.signo, fault.code) == (libc::SIGTRAP, TRAP_TRACE) {
        let inside = loaded.offset_of(fault.ip).is_some();
        let left = active.steps.get().saturating_sub(u64::from(inside));
        active.steps.set(left);
        let leaving = !inside && fault.ip == ub_ring3_exit as *const () as u64;
        if left == 0 && !leaving {
            // SAFETY: the runner keeps the words as long as `active`.
            unsafe { (*active.words).flags.store(PollWords::MASK, Ordering::SeqCst) };
        }
        if left == 0 || leaving {
            gregs[greg::EFL] &= !(TF as i64);
        }
        return true;
    }
    let landing = match fault.signo {
        libc::SIGTRAP => loaded.injected(fault.ip),
        _ => loaded.offset_of(fault.ip).and_then(|offset| loaded.landing(offset)),
    };
    match landing {
        Some(landing) if fault.signo != libc::SIGILL => {
            active.caught.set(Some(fault));
            gregs[greg::RIP] = (loaded.address() + u64::from(landing)) as i64;
        }
        // Includes faults outside the fragment: it jumped somewhere.
        _ => {
            active.uncaught.set(Some(fault));
            gregs[greg::RSP] = active.frame as i64;
            gregs[greg::RIP] = ub_ring3_exit as *const () as i64;
        }
    }
    true
}
