//! The child's loop around an engine in Rust, and the command that starts it.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use onelane::{Engine, EngineError};

use crate::channel::{Channel, OutputsError};
use crate::error::RemoteError;
use crate::frame::Kind;
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
/// error, and the engine is built again before the next batch. After
/// [`EngineError::Lost`] the process ends.
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
    let ended = channel.and_then(|channel| run(channel, &factory));
    if let Err(error) = &ended {
        eprintln!("an isolated worker ends: {error}");
    }
    std::process::exit(i32::from(ended.is_err()))
}

fn run<E>(mut channel: Channel, factory: &dyn Fn() -> Result<E, EngineError>) -> io::Result<()>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    channel.building()?;
    let mut engine = match contain(factory) {
        Ok(engine) => engine,
        Err((_, error)) => return channel.not_built(&error),
    };
    channel.warming_up()?;
    if let Err((_, error)) = contain(|| engine.warmup()) {
        return channel.not_built(&error);
    }
    channel.ready(engine.idempotent())?;
    while let Some(batch) = channel.receive()? {
        let items = channel.requests(&batch).and_then(|mut reader| {
            let items = E::Item::read_vec(batch.count, &mut reader)?;
            Ok((items, reader.remaining()))
        });
        let items = match items {
            Ok((items, 0)) => items,
            Ok((_, left)) => {
                let text = format!("the requests did not arrive whole: {left} bytes are left over");
                channel.error(Kind::Failed, &RemoteError::new(text, Vec::new()))?;
                continue;
            }
            Err(error) => {
                let text = format!("the requests did not arrive whole: {error}");
                channel.error(Kind::Failed, &RemoteError::new(text, Vec::new()))?;
                continue;
            }
        };
        let ran = contain(|| {
            let outputs = engine.infer(&items)?;
            Ok((outputs, engine.padded_cost(&items)))
        });
        match ran {
            Ok((outputs, cost)) => {
                let sent = channel.outputs(outputs.len(), cost as u64, |to| {
                    E::Output::write_slice(&outputs, to);
                });
                match sent {
                    Ok(()) => {}
                    Err(OutputsError::Gone(error)) => return Err(error),
                    Err(OutputsError::Wire(error)) => {
                        let error = RemoteError::new(error.to_string(), Vec::new());
                        channel.error(Kind::OutOfMemory, &error)?;
                    }
                }
            }
            Err((Kind::Panicked, error)) => {
                // What a panic has left behind is not to be trusted.
                let dropped = contain(|| {
                    drop(items);
                    drop(engine);
                    Ok(())
                });
                let rebuilt = dropped.and_then(|()| contain(factory));
                let rebuilt = rebuilt.and_then(|mut engine| {
                    contain(|| engine.warmup())?;
                    Ok(engine)
                });
                match rebuilt {
                    Ok(fresh) => engine = fresh,
                    Err((_, again)) => {
                        let text = format!("{error}; and could not be built again: {again}");
                        return channel.error(Kind::Lost, &RemoteError::new(text, Vec::new()));
                    }
                }
                channel.error(Kind::Panicked, &error)?;
            }
            Err((kind, error)) => {
                channel.error(kind, &error)?;
                if kind == Kind::Lost {
                    // Dropping an engine whose device is poisoned may hang; its process ends anyway.
                    std::mem::forget(engine);
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Runs the engine's code; its error, or its panic, becomes what is sent to the parent.
fn contain<R>(body: impl FnOnce() -> Result<R, EngineError>) -> Result<R, (Kind, RemoteError)> {
    // What a panic leaves behind is dropped by the caller and not looked at again.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error {
            EngineError::OutOfMemory(source) => (Kind::OutOfMemory, remote(&*source)),
            EngineError::Lost(source) => (Kind::Lost, remote(&*source)),
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
            Err((
                Kind::Panicked,
                RemoteError { panicked: true, ..RemoteError::new(text, Vec::new()) },
            ))
        }
    }
}

fn remote(source: &(dyn std::error::Error + Send + Sync + 'static)) -> RemoteError {
    source
        .downcast_ref::<RemoteError>()
        .cloned()
        .unwrap_or_else(|| RemoteError::new(source.to_string(), Vec::new()))
}
