//! The engine in the child: it does to its process what a request says.

use std::io::Write as _;
use std::time::Duration;

use onelane::{BatchItem, Engine, EngineError};
use onelane_isolate::{Reader, RemoteError, Wire, WireError, Writer, wire_by_serde};
use onelane_sim::scenario::{Crash, CrashTrial};
use onelane_sim::sync::SimBarrier;
use onelane_sim::{HostTensor, Profile, SimConfig, SimDevice};

/// What a request makes the child do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Act {
    /// Answer with the value.
    Echo,
    /// A write to where nothing is.
    Segfault,
    Abort,
    Exit,
    KillItself,
    Hang,
    Panic,
    Fail,
    /// A failure with a detail.
    FailInDetail,
    OutOfMemoryIfSeveral,
    /// Its engine is lost.
    Poison,
    /// Half a frame, then death.
    DieMidReply,
    /// Keep so many MiB for ever.
    Grow(usize),
    /// Take so many milliseconds.
    Work(u64),
    Print,
    /// Answer with 2 MB.
    Inflate,
    /// What a simulated device with real faults does.
    Simulated(Simulated),
}

/// What is done on a simulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Simulated {
    /// Two threads encode to one stream, as PyTorch up to 2.14 lets them.
    Race,
    /// A thread waits for one that never comes.
    Deadlock,
    /// A batch of so many rows, a shape that may be new.
    Shape(usize),
}

wire_by_serde!(Act);

pub struct Ask {
    pub act: Act,
    pub value: u64,
    pub data: Vec<f32>,
}

impl Ask {
    pub fn new(act: Act, value: u64) -> Self {
        Self { act, value, data: Vec::new() }
    }
}

impl BatchItem for Ask {
    type Key = ();
    fn key(&self) {}
}

impl Wire for Ask {
    fn write(&self, to: &mut Writer<'_>) {
        self.act.write(to);
        self.value.write(to);
        self.data.write(to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { act: Wire::read(from)?, value: Wire::read(from)?, data: Wire::read(from)? })
    }
}

/// The value, and the data doubled.
pub type Reply = (u64, Vec<f32>);

/// Settings come by variables, as the engine is built in another process.
pub struct Actor {
    kept: Vec<Vec<u8>>,
    simulated: Option<SimDevice>,
}

impl Actor {
    pub fn new() -> Result<Self, EngineError> {
        match set("BUILD").as_deref() {
            Some("abort") => std::process::abort(),
            Some("fail") => return Err(EngineError::failed("no such model")),
            Some("panic") => panic!("a model of the wrong shape"),
            Some("hang") => sleep_for_ever(),
            Some("fail_once") if !has_been_here() => {
                return Err(EngineError::failed("not yet"));
            }
            Some("abort_on_rebuild") if has_been_here() && !has_been_here_twice() => {
                std::process::abort();
            }
            Some("hang_on_rebuild") if has_been_here() && !has_been_here_twice() => {
                sleep_for_ever();
            }
            Some("slow") => std::thread::sleep(Duration::from_secs(3)),
            _ => {}
        }
        Ok(Self { kept: Vec::new(), simulated: None })
    }

    fn act(&mut self, ask: &Ask, size: usize) -> Result<(), EngineError> {
        match ask.act {
            Act::Echo | Act::Inflate => {}
            Act::Segfault => segfault(),
            Act::Abort => {
                eprintln!("-[MTLCommandBuffer addCompletedHandler:]: failed assertion");
                std::process::abort();
            }
            Act::Exit => std::process::exit(41),
            Act::KillItself => kill_itself(),
            Act::Hang => sleep_for_ever(),
            Act::Panic => panic!("no such token"),
            Act::Fail => return Err(EngineError::failed("no such row")),
            Act::FailInDetail => {
                return Err(EngineError::failed(RemoteError::new("typed", vec![1, 2, 3])));
            }
            Act::OutOfMemoryIfSeveral if size > 1 => {
                return Err(EngineError::out_of_memory("too many rows"));
            }
            Act::OutOfMemoryIfSeveral => {}
            Act::Poison => return Err(EngineError::lost("device-side assert triggered")),
            Act::DieMidReply => {
                // The socket is the lowest descriptor from 3 on, see `Channel`.
                let frame =
                    onelane_isolate::frame::Frame::new(onelane_isolate::frame::Kind::Outputs);
                crate::liar::write_to_parent(&frame.encode()[..32]);
                std::process::abort();
            }
            Act::Grow(mib) => self.kept.push(vec![1; mib << 20]),
            Act::Work(milliseconds) => std::thread::sleep(Duration::from_millis(milliseconds)),
            Act::Simulated(what) => self.simulate(what)?,
            Act::Print => {
                println!("to stdout: {}", ask.value);
                eprintln!("to stderr: {}", ask.value);
            }
        }
        Ok(())
    }
}

impl Actor {
    fn simulate(&mut self, what: Simulated) -> Result<(), EngineError> {
        let profile = Profile::upstream_2_14().with_real_faults(true);
        match what {
            Simulated::Race => {
                // Seeds of which at least one meets the fault; the process ends there.
                for seed in 0..50 {
                    let trial = CrashTrial::new(profile.clone()).seed(seed);
                    trial.run(Crash::Arange).map_err(EngineError::failed)?;
                }
            }
            Simulated::Deadlock => {
                let device = SimDevice::new(SimConfig::new(profile));
                let barrier = SimBarrier::new(&device, 2);
                let met = device.run(|_| barrier.wait()).and_then(|met| met);
                met.map_err(EngineError::failed)?;
            }
            Simulated::Shape(rows) => {
                let make = || SimDevice::new(SimConfig::new(profile));
                let device = self.simulated.get_or_insert_with(make);
                let zeros = |shape: [usize; 2]| HostTensor::new(shape, vec![0.0; shape[0] * 4]);
                let ran = device.run(|_| {
                    let (x, weight) = (device.upload(&zeros([rows, 4]))?, zeros([4, 4]));
                    x.matmul(&device.upload(&weight)?)?.download().map(drop)
                });
                ran.and_then(|ran| ran).map_err(EngineError::failed)?;
            }
        }
        Ok(())
    }
}

impl Engine for Actor {
    type Item = Ask;
    type Output = Reply;

    fn infer(&mut self, batch: &[Ask]) -> Result<Vec<Reply>, EngineError> {
        if let Some(path) = set("RECORD") {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            let mut file = file.map_err(EngineError::failed)?;
            let line: Vec<_> = batch.iter().map(|ask| format!("{}\n", ask.value)).collect();
            file.write_all(line.concat().as_bytes()).map_err(EngineError::failed)?;
        }
        for ask in batch {
            self.act(ask, batch.len())?;
        }
        let data = |ask: &Ask| match ask.act {
            Act::Inflate => vec![1.0; 500_000],
            _ => ask.data.iter().map(|x| x * 2.0).collect(),
        };
        Ok(batch.iter().map(|ask| (ask.value, data(ask))).collect())
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        match set("WARMUP").as_deref() {
            Some("abort") => std::process::abort(),
            Some("fail") => Err(EngineError::failed("no kernel for this device")),
            _ => Ok(()),
        }
    }

    fn idempotent(&self) -> bool {
        set("IDEMPOTENT").as_deref() != Some("no")
    }

    fn padded_cost(&self, batch: &[Ask]) -> usize {
        batch.len() * 3
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        match set("DROP").as_deref() {
            Some("hang") => sleep_for_ever(),
            Some("say") => eprintln!("the engine was dropped"),
            _ => {}
        }
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(format!("ONELANE_TEST_{name}")).ok()
}

/// Whether another child has been here, by the directory of this test.
fn has_been_here() -> bool {
    let marker = set("MARKER").expect("the test sets it");
    std::fs::create_dir(marker).is_err()
}

fn has_been_here_twice() -> bool {
    let marker = set("MARKER").expect("the test sets it") + ".second";
    std::fs::create_dir(marker).is_err()
}

pub fn segfault() {
    let nowhere = std::ptr::without_provenance_mut::<u8>(16);
    // SAFETY: none: it is to be killed for this.
    unsafe { nowhere.write_volatile(1) };
}

fn kill_itself() {
    let signal = rustix::process::Signal::KILL;
    rustix::process::kill_process(rustix::process::getpid(), signal).expect("it is ours");
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
