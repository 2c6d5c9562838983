//! One network namespace, named so that `ip netns` knows it.

use std::{
    fs::File,
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A handle: cloning it does not make a second namespace. The [`Lab`](super::Lab) removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; 124 after a timeout, 128 + n after signal n.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Namespace {
    pub(super) fn named(name: String) -> Self {
        Self { name }
    }

    pub(super) fn create(&self) {
        ip(&["netns", "add", &self.name], "");
        self.configure("link set lo up");
    }

    /// Its name, as `ip netns` prints it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip -batch` in it.
    pub fn configure(&self, lines: &str) {
        ip(&["-n", &self.name, "-batch", "-"], lines);
    }

    /// The same for objects whose lines do not show that they are IPv6.
    pub fn configure_v6(&self, lines: &str) {
        ip(&["-6", "-n", &self.name, "-batch", "-"], lines);
    }

    /// Sets a key under `/proc/sys`, written with slashes.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.enter(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{}: {path}: {e}", self.name));
    }

    /// Makes glibc in this namespace ask `server` first (`ip netns exec` binds the file over `/etc/resolv.conf`).
    pub fn resolv_conf(&self, server: &str) {
        let dir = self.etc();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(
            dir.join("resolv.conf"),
            format!("nameserver {server}\noptions timeout:1 attempts:2\n"),
        )
        .unwrap();
    }

    /// A command that will run in it. The child's process id is the program's own: `ip netns exec` does not fork.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(located("ip"));
        command.args(["netns", "exec", &self.name]).arg(located(program)).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, ten seconds at most.
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        self.run_for(Duration::from_secs(10), program, args)
    }

    /// Runs a program to its end, at most for `limit`.
    pub fn run_for(&self, limit: Duration, program: &str, args: &[&str]) -> Finished {
        let mut command = self.command("timeout");
        command.arg("--kill-after=1").arg(format!("{:.1}", limit.as_secs_f64()));
        command.arg(located(program)).args(args);
        Finished::of(&mut command)
    }

    /// Calls `f` on a thread that is in the namespace. Sockets made there stay there, whoever uses them.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                        .unwrap_or_else(|e| panic!("entering {path}: {e}"));
                    f()
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Connects from inside, with a limit on the attempt and on every later read and write.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let stream = self.enter(|| TcpStream::connect_timeout(&to, limit))?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A listener inside.
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        self.enter(|| TcpListener::bind(at)).unwrap_or_else(|e| panic!("{}: {at}: {e}", self.name))
    }

    /// A UDP socket inside, with a limit on every receive.
    pub fn udp(&self, at: SocketAddr, limit: Duration) -> UdpSocket {
        let socket =
            self.enter(|| UdpSocket::bind(at)).unwrap_or_else(|e| panic!("{}: {at}: {e}", self.name));
        socket.set_read_timeout(Some(limit)).unwrap();
        socket
    }

    /// The processes in it.
    pub fn pids(&self) -> Vec<i32> {
        super::leftovers::pids_in(&self.name)
    }

    /// Kills what still runs inside and removes it. Never panics: it runs while a test unwinds.
    pub(super) fn destroy(&self) {
        super::leftovers::remove_namespace(&self.name);
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Finished {
    /// Runs `command` and collects it.
    pub fn of(command: &mut Command) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Self {
            code,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it printed, trimmed; panics with everything it said if it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.stdout.trim().to_owned()
    }

    /// What it printed and complained; panics if it did not fail by itself (a timeout is no failure of its own).
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(self.code != 0 && self.code != 124, "it should have failed: {self}");
        format!("{}\n{}", self.stdout.trim(), self.stderr.trim())
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit code {}\n--- stdout\n{}\n--- stderr\n{}",
            self.code,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }
}

/// `PATH` of an ordinary user lacks the directories of daemons, and so may cargo's.
fn located(program: &str) -> PathBuf {
    super::needs::program(program).unwrap_or_else(|| program.into())
}

fn ip(args: &[&str], input: &str) {
    let mut child = Command::new(located("ip"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("ip: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "ip {}: {}\n{input}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
