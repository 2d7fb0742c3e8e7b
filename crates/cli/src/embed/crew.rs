//! [`Crew`]: the threads between the input and the output.
//!
//! One reader; `threads` clients, which tokenise a text and submit it; and the calling thread, which
//! waits for the responses in input order and writes them. A permit for each text under way bounds
//! what all of them hold: the reader takes one for a line, the writer gives it back when the line
//! has been written.
//!
//! The clients do not wait for what they submit: the handle goes to the writer. So a few threads
//! keep enough texts waiting that every length bucket fills its batches.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, anyhow, bail};
use onelane::{BatchQueue, Priority, Refusal, Request, RequestError, ResponseHandle};
use onelane_engines::{EmbeddingEngine, EmbeddingModel};

use super::lines::{Input, Line};
use super::sink::Sink;

/// What a run needs.
pub struct Crew {
    /// Client threads.
    pub threads: usize,
    /// The most texts under way.
    pub window: usize,
    /// What each client works with.
    pub client: Client,
}

/// Tokenises texts and submits them.
#[derive(Clone)]
pub struct Client {
    /// Tokenises.
    pub model: EmbeddingModel,
    /// Embeds.
    pub queue: BatchQueue<EmbeddingEngine>,
    /// Of every request.
    pub priority: Priority,
}

/// A line that has been written.
pub struct Done {
    /// The line's number, from 0.
    pub index: u64,
    /// The text's embedding, or why it has none.
    pub outcome: Result<Vec<f32>, String>,
    /// Whether the text was longer than the model's limit.
    pub truncated: bool,
    /// Bytes of the input up to the line's end.
    pub offset: u64,
}

/// A line on its way to the writer.
struct Submitted {
    index: u64,
    offset: u64,
    truncated: bool,
    answer: Answer,
}

enum Answer {
    /// It is being computed.
    Pending(ResponseHandle<Vec<f32>>),
    /// This line alone has none.
    Refused(String),
    /// Neither this line nor any other will have one.
    Broken(String),
}

/// What the reader hands out: lines, then perhaps why there are no more.
type Read = anyhow::Result<Line>;

impl Crew {
    /// Runs the input through the queue into the sink; `note` hears of each line written.
    ///
    /// # Errors
    /// When the input cannot be read, the output not be written, a thread not be started, or the
    /// queue has given up on its engine. What was read before is written in the first case.
    pub fn run(
        &self,
        input: Input,
        sink: &mut Sink,
        note: impl FnMut(&Done),
    ) -> anyhow::Result<()> {
        let (permit, permits) = mpsc::channel();
        for _ in 0..self.window {
            // The receiver is alive: it is here.
            let _ = permit.send(());
        }
        let (send_line, lines) = mpsc::channel();
        let (submitted, answers) = mpsc::channel();
        // None of the threads is joined. When all goes well they have ended before the writer does;
        // when the output fails, the reader may be blocked on a terminal for ever.
        thread::Builder::new()
            .name("embed-reader".to_owned())
            .spawn(move || read(input, &permits, &send_line))
            .context("cannot start the reader thread")?;
        let lines = Arc::new(Mutex::new(lines));
        for i in 0..self.threads {
            let (client, lines) = (self.client.clone(), Arc::clone(&lines));
            let submitted = submitted.clone();
            thread::Builder::new()
                .name(format!("embed-client-{i}"))
                .spawn(move || client.serve(&lines, &submitted))
                .with_context(|| format!("cannot start client thread {}", i + 1))?;
        }
        drop(submitted);
        write(&answers, &permit, sink, note)
    }
}

impl Client {
    /// Takes lines, submits their texts, passes the handles on.
    fn serve(&self, lines: &Mutex<Receiver<Read>>, submitted: &Sender<anyhow::Result<Submitted>>) {
        loop {
            // CORRECTNESS: whoever waits here holds no handle, so nobody waits for this client.
            let line = lines.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(line) = line else { return };
            if submitted.send(line.map(|line| self.submit_contained(line))).is_err() {
                return;
            }
        }
    }

    /// As [`submit`](Self::submit); a panic in the tokeniser is this line's error. Were the line
    /// lost, the writer would wait for it for ever.
    fn submit_contained(&self, line: Line) -> Submitted {
        let (index, offset) = (line.index, line.offset);
        catch_unwind(AssertUnwindSafe(|| self.submit(line))).unwrap_or_else(|_| Submitted {
            index,
            offset,
            truncated: false,
            answer: Answer::Refused("the tokeniser panicked on it".to_owned()),
        })
    }

    fn submit(&self, line: Line) -> Submitted {
        let Line { index, text, cut, offset } = line;
        let refused =
            |why| Submitted { index, offset, truncated: false, answer: Answer::Refused(why) };
        let text = match text {
            Ok(text) => text,
            Err(wrong) => return refused(format!("not UTF-8: byte {} is wrong", wrong.byte)),
        };
        // As sentence-transformers' `encode` does.
        let text = match &self.model.settings().default_prompt {
            Some(prompt) => format!("{prompt}{text}"),
            None => text,
        };
        let text = match self.model.tokeniser().encode(&text) {
            Ok(text) => text,
            Err(error) => return refused(error.to_string()),
        };
        let truncated = cut || text.truncated();
        let answer = match self.queue.submit(Request::new(text).priority(self.priority)) {
            Ok(handle) => Answer::Pending(handle),
            Err(error) => match error.reason() {
                Refusal::Failed(_) | Refusal::Closed => Answer::Broken(error.to_string()),
                _ => Answer::Refused(error.to_string()),
            },
        };
        Submitted { index, offset, truncated, answer }
    }
}

/// Waits for the answers in input order, and writes them.
fn write(
    answers: &Receiver<anyhow::Result<Submitted>>,
    permit: &Sender<()>,
    sink: &mut Sink,
    mut note: impl FnMut(&Done),
) -> anyhow::Result<()> {
    let mut early: BTreeMap<u64, Submitted> = BTreeMap::new();
    let mut next = 0;
    let mut unread = None;
    loop {
        let submitted = match answers.try_recv() {
            Err(TryRecvError::Empty) => {
                sink.flush()?;
                answers.recv().ok()
            }
            submitted => submitted.ok(),
        };
        match submitted {
            Some(Ok(submitted)) => drop(early.insert(submitted.index, submitted)),
            Some(Err(error)) => unread = Some(error),
            None => break,
        }
        while let Some(submitted) = early.remove(&next) {
            let done = settle(submitted)?;
            sink.line(&json_line(&done)?)?;
            note(&done);
            next += 1;
            // The reader has gone when the input has ended.
            let _ = permit.send(());
        }
    }
    if !early.is_empty() {
        bail!("line {} was lost on the way; please report this", next + 1);
    }
    unread.map_or(Ok(()), Err)
}

/// The reader: one line for each permit, until the input or the writer ends.
fn read(mut input: Input, permits: &Receiver<()>, lines: &Sender<Read>) {
    while permits.recv().is_ok() {
        let Some(line) = input.next_line().transpose() else { return };
        let last = line.is_err();
        if lines.send(line).is_err() || last {
            return;
        }
    }
}

/// Waits for one answer.
fn settle(submitted: Submitted) -> anyhow::Result<Done> {
    let Submitted { index, offset, truncated, answer } = submitted;
    let outcome = match answer {
        Answer::Pending(handle) => match handle.wait() {
            Ok(embedding) if embedding.iter().all(|v| v.is_finite()) => Ok(embedding),
            Ok(_) => Err("the embedding is not finite: are the model's weights?".to_owned()),
            Err(error @ (RequestError::QueueFailed(_) | RequestError::Closed)) => {
                return Err(anyhow!(error).context(format!("line {} was not embedded", index + 1)));
            }
            Err(error) => Err(error.to_string()),
        },
        Answer::Refused(why) => Err(why),
        Answer::Broken(why) => bail!("line {} was not embedded: {why}", index + 1),
    };
    Ok(Done { index, outcome, truncated, offset })
}

fn json_line(done: &Done) -> anyhow::Result<Vec<u8>> {
    let mut line = Vec::new();
    let index = done.index;
    match &done.outcome {
        Ok(embedding) => {
            write!(line, "{{\"index\":{index},\"embedding\":")?;
            serde_json::to_writer(&mut line, embedding)?;
        }
        Err(error) => {
            write!(line, "{{\"index\":{index},\"error\":")?;
            serde_json::to_writer(&mut line, error)?;
        }
    }
    line.push(b'}');
    Ok(line)
}
