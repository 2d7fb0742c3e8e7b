//! The child's loop around an engine in Rust, and the command that starts it.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use onelane::{Engine, EngineError};

use crate::arena::Writer;
use crate::channel::{Channel, ChildBatch, OutputsError};
use crate::error::RemoteError;
use crate::frame::Kind;
use crate::pool;
use crate::sticky::sticky;
use crate::wire::Wire;

/// A command that runs the program of this process once more; [`serve`] tells it that it is a
/// child. The arguments are not repeated.
pub fn this_program() -> Command {
    // On Linux this is the program that runs, also when its file has been replaced meanwhile.
    let running = if cfg!(target_os = "linux") { Some("/proc/self/exe".into()) } else { None };
    let named = std::env::args_os().next().unwrap_or_else(|| "onelane-child".into());
    let program = running.or_else(|| std::env::current_exe().ok());
    let mut command = Command::new(program.unwrap_or_else(|| named.clone().into()));
    command.arg0(named);
    command
}

/// Runs the engine's batches if this process was started as an isolated worker, and ends it;
/// otherwise returns at once. Call it first in `main`.
///
/// The engine is built, warmed up, used and dropped on this thread. A panic of it is answered as an
/// error, and the engine is built again before the next batch. After [`EngineError::Lost`],
/// [`EngineError::DeviceLost`] or an error whose text is [`sticky`](crate::sticky()) the process ends.
///
/// # Blocking
/// In a child, for its whole life: it does not return.
pub fn serve<E>(factory: impl Fn() -> Result<E, EngineError>)
where
    E: Engine<Item: Wire, Output: Wire>,
{
    let Some(channel) = Channel::from_parent() else {
        return;
    };
    let ended = channel.and_then(|channel| serve_channel(channel, factory));
    if let Err(error) = &ended {
        eprintln!("an isolated worker ends: {error}");
    }
    std::process::exit(i32::from(ended.is_err()))
}

/// As [`serve`], on a channel that there is already: for a factory that needs its
/// [`payload`](Channel::payload), or a process that has more to do at its end. Returns when the
/// parent wants this process to end, or its engine is lost; then it must end.
///
/// # Errors
/// The parent is gone, or sent what cannot be understood.
///
/// # Blocking
/// Until then.
pub fn serve_channel<E>(
    mut channel: Channel,
    factory: impl Fn() -> Result<E, EngineError>,
) -> io::Result<()>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    let factory: &dyn Fn() -> Result<E, EngineError> = &factory;
    let mut engine = match build(&mut channel, factory)? {
        Ok(engine) => engine,
        Err(error) => return channel.not_built(&error),
    };
    channel.ready(engine.idempotent())?;
    while let Some(batch) = channel.receive()? {
        match run_batch(&mut channel, &mut engine, &batch)? {
            Ok(()) => {}
            Err((Kind::Lost, error)) => {
                channel.error(Kind::Lost, &error)?;
                // Dropping an engine whose device is poisoned may hang; its process ends anyway.
                std::mem::forget(engine);
                return Ok(());
            }
            Err((Kind::Panicked, error)) => {
                // What a panic has left behind is not to be trusted.
                let dropped = contain_drop(engine);
                let rebuilt = match dropped {
                    Ok(()) => build(&mut channel, factory)?,
                    Err((_, error)) => Err(error),
                };
                engine = match rebuilt {
                    Ok(engine) => engine,
                    Err(again) => {
                        let text = format!("{error}; and could not be built again: {again}");
                        return channel.error(Kind::Lost, &RemoteError::new(text, Vec::new()));
                    }
                };
                channel.error(Kind::Panicked, &error)?;
            }
            Err((kind, error)) => channel.error(kind, &error)?,
        }
    }
    // Its process ends next: a panic here is nobody's.
    let _ = contain_drop(engine);
    Ok(())
}

/// Builds an engine and warms it up. The outer error is that the parent is gone.
fn build<E: Engine>(
    channel: &mut Channel,
    factory: &dyn Fn() -> Result<E, EngineError>,
) -> io::Result<Result<E, RemoteError>> {
    channel.building()?;
    let mut engine = match contain(factory) {
        Ok(engine) => engine,
        Err((_, error)) => return Ok(Err(error)),
    };
    channel.warming_up()?;
    Ok(contain(|| engine.warmup()).map(|()| engine).map_err(|(_, error)| error))
}

/// Runs a batch and sends its outputs. What is returned as the inner error is still to be sent.
fn run_batch<E>(
    channel: &mut Channel,
    engine: &mut E,
    batch: &ChildBatch,
) -> io::Result<Result<(), (Kind, RemoteError)>>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    let items = contain(|| {
        let mut reader = channel.requests(batch).map_err(EngineError::failed)?;
        let items = E::Item::read_vec(batch.count, &mut reader).map_err(EngineError::failed)?;
        match reader.remaining() {
            0 => Ok(items),
            left => Err(EngineError::failed(format!("{left} bytes of the requests are left over"))),
        }
    });
    let ran = items.and_then(|items| {
        contain(|| {
            let outputs = engine.infer(&items)?;
            Ok((outputs, engine.padded_cost(&items)))
        })
    });
    let (outputs, cost) = match ran {
        Ok(ran) => ran,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut gone = None;
    let sent = contain(|| {
        let write = |to: &mut Writer<'_>| E::Output::write_slice(&outputs, to);
        match channel.outputs(outputs.len(), cost as u64, write) {
            Ok(()) => Ok(()),
            Err(OutputsError::Wire(error)) => Err(EngineError::out_of_memory(error)),
            Err(OutputsError::Gone(error)) => {
                gone = Some(error);
                Ok(())
            }
        }
    });
    gone.map_or(Ok(sent), Err)
}

fn contain_drop<E>(engine: E) -> Result<(), (Kind, RemoteError)> {
    contain(|| {
        drop(engine);
        Ok(())
    })
}

/// Runs the engine's code; its error, or its panic, becomes what is sent to the parent.
fn contain<R>(body: impl FnOnce() -> Result<R, EngineError>) -> Result<R, (Kind, RemoteError)> {
    // What a panic leaves behind is dropped by the caller and not looked at again.
    match pool::autorelease(|| catch_unwind(AssertUnwindSafe(body))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error {
            EngineError::OutOfMemory(source) => (Kind::OutOfMemory, remote(&*source)),
            EngineError::Lost(source) | EngineError::DeviceLost(source) => {
                (Kind::Lost, remote(&*source))
            }
            // An engine that does not know that its device answers nothing but errors.
            EngineError::Failed(source) if sticky(&source.to_string()).is_some() => {
                (Kind::Lost, remote(&*source))
            }
            EngineError::Failed(source) => (Kind::Failed, remote(&*source)),
            other => (Kind::Failed, RemoteError::new(other.to_string(), Vec::new())),
        }),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without a message".to_owned());
            // The payload's own drop may panic too.
            std::mem::forget(payload);
            // Another engine in this process would meet the same.
            let kind = if sticky(&text).is_some() { Kind::Lost } else { Kind::Panicked };
            Err((kind, RemoteError { panicked: true, ..RemoteError::new(text, Vec::new()) }))
        }
    }
}

fn remote(source: &(dyn std::error::Error + Send + Sync + 'static)) -> RemoteError {
    source
        .downcast_ref::<RemoteError>()
        .cloned()
        .unwrap_or_else(|| RemoteError::new(source.to_string(), Vec::new()))
}
