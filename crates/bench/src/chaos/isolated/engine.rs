//! The engine in the child: it does to its process what a request says.

use std::time::Duration;

use onelane::{BatchItem, Engine, EngineError};
use onelane_isolate::{Reader, Wire, WireError, Writer};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, getpid, kill_process};

/// What a request makes the child do. The number is how it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Act {
    Answer,
    Work,
    Grow,
    Segfault,
    Abort,
    Exit,
    Kill,
    Stop,
    Hang,
    Garbage,
    Lost,
    Panic,
    Fail,
    Split,
}

impl Act {
    pub(super) const ALL: [Self; 14] = [
        Self::Answer,
        Self::Work,
        Self::Grow,
        Self::Segfault,
        Self::Abort,
        Self::Exit,
        Self::Kill,
        Self::Stop,
        Self::Hang,
        Self::Garbage,
        Self::Lost,
        Self::Panic,
        Self::Fail,
        Self::Split,
    ];

    /// Whether the request is to be answered whatever happens.
    pub(super) fn is_harmless(self) -> bool {
        matches!(self, Self::Answer | Self::Work | Self::Grow | Self::Split)
    }
}

pub(super) struct Ask {
    pub(super) act: Act,
    pub(super) number: u64,
    pub(super) data: Vec<f32>,
}

/// The number, and the data as they were.
pub(super) type Reply = (u64, Vec<f32>);

impl BatchItem for Ask {
    type Key = ();
    fn key(&self) {}
}

impl Wire for Ask {
    fn write(&self, to: &mut Writer<'_>) {
        (self.act as u8).write(to);
        self.number.write(to);
        self.data.write(to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let act = usize::from(u8::read(from)?);
        let act = Act::ALL.get(act).ok_or_else(|| WireError::Invalid(format!("no act {act}")))?;
        Ok(Self { act: *act, number: Wire::read(from)?, data: Wire::read(from)? })
    }
}

pub(super) struct Faulty {
    kept: Vec<Vec<u8>>,
}

impl Faulty {
    pub(super) fn new() -> Result<Self, EngineError> {
        Ok(Self { kept: Vec::new() })
    }

    fn act(&mut self, ask: &Ask, size: usize) -> Result<(), EngineError> {
        match ask.act {
            Act::Answer => {}
            Act::Work => std::thread::sleep(Duration::from_millis(ask.number % 8)),
            Act::Grow => self.kept.push(vec![1; 16 << 20]),
            Act::Segfault => signal(Signal::SEGV),
            Act::Abort => {
                eprintln!("failed assertion `{}'", ask.number);
                std::process::abort();
            }
            Act::Exit => std::process::exit(i32::from(ask.number as u8)),
            Act::Kill => signal(Signal::KILL),
            Act::Stop => signal(Signal::STOP),
            Act::Hang => sleep_for_ever(),
            Act::Garbage => {
                write_to_parent(&[0xab; 100]);
                sleep_for_ever();
            }
            Act::Lost => return Err(EngineError::failed("CUDA error: device-side assert")),
            Act::Panic => panic!("chaos"),
            Act::Fail => return Err(EngineError::failed("chaos")),
            Act::Split if size > 1 => return Err(EngineError::out_of_memory("chaos")),
            Act::Split => {}
        }
        Ok(())
    }
}

impl Engine for Faulty {
    type Item = Ask;
    type Output = Reply;

    fn infer(&mut self, batch: &[Ask]) -> Result<Vec<Reply>, EngineError> {
        for ask in batch {
            self.act(ask, batch.len())?;
        }
        Ok(batch.iter().map(|ask| (ask.number, ask.data.clone())).collect())
    }
}

fn signal(signal: Signal) {
    // It is this very process, which may do this.
    let _ = kill_process(getpid(), signal);
    sleep_for_ever();
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Writes past the channel to all sockets of this process: there is one.
fn write_to_parent(bytes: &[u8]) {
    let Ok(this) = rustix::process::pidfd_open(getpid(), PidfdFlags::empty()) else { return };
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let number = entry.file_name().to_string_lossy().parse();
        if let (true, Ok(number)) = (target.to_string_lossy().starts_with("socket:"), number)
            && let Ok(socket) =
                rustix::process::pidfd_getfd(&this, number, PidfdGetfdFlags::empty())
        {
            let _ = rustix::io::write(&socket, bytes);
        }
    }
}
