//! Which core a thread runs on: what is measured on one, all else on the others.

use std::fs;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where a thread may run.
#[derive(Clone, Copy)]
pub enum Cores {
    /// On the one of what is measured.
    Measured,
    /// On all but that.
    Others,
    /// On any.
    All,
}

impl Cores {
    /// The system passes over those that it has not.
    fn set(self) -> CpuSet {
        let mut set = CpuSet::new();
        for core in 0..CpuSet::MAX_CPU {
            let wanted = match self {
                Self::Measured => core == 0,
                Self::Others => core > 0,
                Self::All => true,
            };
            if wanted {
                set.set(core);
            }
        }
        set
    }
}

/// Puts the current thread there; threads and processes that it starts go with it.
pub fn go_to(cores: Cores) {
    match sched_setaffinity(None, &cores.set()) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Puts each thread of a process where `choose` says; it is told the thread's number.
pub fn put(pid: &str, choose: impl Fn(u32) -> Cores) {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let name = thread.unwrap().file_name();
        let number: u32 = name.to_str().unwrap().parse().unwrap();
        let thread = Pid::from_raw(number.try_into().unwrap());
        match sched_setaffinity(thread, &choose(number).set()) {
            // A thread may have ended meanwhile; and where there is one core only, all stay on it.
            Ok(()) | Err(Errno::SRCH | Errno::INVAL) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
