//! A program that keeps running, with its output in a file that a test can wait on.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use super::{resources::Usage, wait::within};

/// How many lines of a log a failed test prints.
const TAIL_LINES: usize = 60;
/// How long a program may take to obey its stop signal before it is killed.
const OBEY: Duration = Duration::from_secs(2);

/// A running program. Dropping it stops it; while a test fails, the end of its log is printed first.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

impl Daemon {
    /// Starts `command` with its output appended to `dir/<name>.log`.
    pub fn spawn(dir: &Path, name: &str, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("starting {name}: {command:?}: {e}"));
        Self { name: name.to_owned(), child, log, stop: Signal::KILL }
    }

    /// The signal that drop sends first; SIGKILL unless said.
    #[must_use]
    pub fn stopped_by(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time and memory so far.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    /// Everything it has said, over restarts too.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// Where the log ends now, for [`wait_for_log_from`](Self::wait_for_log_from).
    pub fn mark(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |m| m.len())
    }

    /// What it has said since `mark`.
    pub fn log_from(&self, mark: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.seek(SeekFrom::Start(mark)).and_then(|_| file.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The first line with `needle` in it; panics if there is none in time or the program ends without one.
    #[track_caller]
    pub fn wait_for_log(&mut self, needle: &str, limit: Duration) -> String {
        self.wait_for_log_from(0, needle, limit)
    }

    /// The same for what it says after `mark`.
    #[track_caller]
    pub fn wait_for_log_from(&mut self, mark: u64, needle: &str, limit: Duration) -> String {
        let what = format!("`{needle}` in the log of {}", self.name);
        within(limit, &what, || {
            let ended = self.child.try_wait().unwrap();
            let found = self.log_from(mark).lines().find(|line| line.contains(needle)).map(str::to_owned);
            assert!(
                found.is_some() || ended.is_none(),
                "{} ended ({ended:?}) before it said `{needle}`",
                self.name
            );
            found
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// How it ended, if it did in time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= deadline => return None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            eprintln!("--- the end of the log of {}\n{tail}\n---", self.name);
        }
        if self.stop != Signal::KILL && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(self.stop);
            let _ = self.wait(OBEY);
        }
        self.kill();
    }
}
