//! Deliberate faults of the protocol: each has to be found.

use clap::ValueEnum;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// Submit looks whether the executor is open, and pushes later without looking again: the
    /// original queue's bug.
    CheckThenPush,
    /// Submit does not wake a worker that sleeps.
    NoWake,
    /// A worker that takes a batch does not pass the call on when there is work for another.
    OneWake,
    /// A dispatch makes room and does not tell the first in line.
    NoRoomSignal,
    /// Whoever leaves the line does not tell the next.
    LeaveSilently,
    /// A submission takes free room past those in line.
    Overtake,
    /// A cancelled request is answered and stays in its list.
    CancelledStays,
    /// The left half of a failed batch is forgotten.
    BisectionLosesHalf,
    /// A batch that panicked is answered at once, and then run again in halves.
    AnsweredTwice,
    /// A worker ends when it is told to stop, though something waits.
    DrainForgets,
    /// A worker looks for errands and only then removes what is late, which may leave it an errand
    /// that it goes to sleep on.
    SleepsOnErrand,
    /// The youngest of a class goes first.
    LastInFirstOut,
    /// A waiting request is never lifted.
    NoAgeing,
    /// A queue is made with errands sent to workers that may have ended.
    ErrandsUnchecked,
    /// A worker that dies leaves what waits.
    DeathLeavesWaiting,
    /// A group is let in as far as there is room.
    GroupInParts,
}
