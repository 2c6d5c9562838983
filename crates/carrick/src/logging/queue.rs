//! Log lines on their way to standard error.
//!
//! Whoever reads a daemon's log may be slow, and a thread that carries flows must not wait for it. Lines go into a bounded
//! queue, and one thread writes them, many at a time. What the queue has no room for is lost, and counted, and the count is
//! written as soon as there is room.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait: a second of 8,000 flows, at some 500 octets each 4 MiB.
const LINES: usize = 8192;
/// Octets of one write.
const BATCH: usize = 64 << 10;
/// Rest between two writes while lines keep coming: a wake-up for each line would cost more than the line.
const REST: Duration = Duration::from_millis(5);

/// Where the subscriber gets its writers from.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    lines: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// Writes what is queued when it is dropped, after the last [`Queue`].
#[derive(Debug)]
pub(crate) struct Drained {
    end: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Drained)> {
        let (lines, queued) = sync_channel(LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        let thread = std::thread::Builder::new()
            .name("carrick-log".to_owned())
            .spawn(move || write_out(&queued, &counted, out))?;
        let drained = Drained { end: lines.clone(), thread: Some(thread) };
        Ok((Self { lines, lost }, drained))
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        // An empty line is the sign to end: the subscriber, being global, keeps its sender for ever.
        let _the_writer_died = self.end.send(Vec::new());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Writes until the sign to end. A failed write is not told: the place to tell it is the one that failed.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
fn write_out(queued: &Receiver<Vec<u8>>, lost: &AtomicU64, mut out: impl Write) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(first) = queued.recv() {
        let mut last = first.is_empty();
        batch.extend(first);
        while !last && batch.len() < BATCH {
            let Ok(line) = queued.try_recv() else { break };
            last = line.is_empty();
            batch.extend(line);
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            batch.extend(
                format!("{missing} log lines were lost: whoever reads this log is too slow\n").bytes(),
            );
        }
        let _failed = out.write_all(&batch).and_then(|()| out.flush());
        batch.clear();
        if last {
            return;
        }
        std::thread::sleep(REST);
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, text: Vec::new() }
    }
}

/// One event, queued as a whole when it is dropped.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    queue: &'a Queue,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if !text.is_empty() && self.queue.lines.try_send(text).is_err() {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Hands on what is written, and waits before each write until it is let.
    struct Gate {
        open: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.open.recv().map_err(io::Error::other)?;
            self.written.send(String::from_utf8_lossy(text).into_owned()).map_err(io::Error::other)?;
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(queue: &Queue, text: &str) {
        queue.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_come_out_in_order_and_all_of_them_before_the_end() {
        let (open, gate) = channel();
        let (written, out) = channel();
        let (queue, drained) = Queue::start(Gate { open: gate, written }).unwrap();
        for n in 0..100 {
            say(&queue, &format!("{n}\n"));
            open.send(()).unwrap();
        }
        drop(drained);
        let all: String = out.iter().collect();
        let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_reader_that_stands_still_stops_nobody_and_hears_how_much_it_missed() {
        let (open, gate) = channel();
        let (written, out) = channel();
        let (queue, drained) = Queue::start(Gate { open: gate, written }).unwrap();
        // Long ones: the batch that waits at the gate takes few of them, however fast its thread is beside ours.
        let line = "x".repeat(BATCH / 64);
        let most = 3 * LINES;
        for _ in 0..most {
            say(&queue, &format!("{line}\n"));
        }
        // From here on the reader reads; it is let as often as it can possibly want.
        for _ in 0..most {
            open.send(()).unwrap();
        }
        drop(drained);
        let all: String = out.iter().collect();
        let told: usize = all
            .lines()
            .filter_map(|line| line.strip_suffix(" log lines were lost: whoever reads this log is too slow"))
            .map(|n| n.parse::<usize>().unwrap())
            .sum();
        let arrived = all.lines().filter(|arrived| *arrived == line).count();
        assert!(told >= LINES, "{told} told");
        assert_eq!(arrived + told, most);
    }
}
