//! A child that speaks the frames by itself, and wrongly.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;

use onelane_isolate::frame::{FRAME_LEN, Frame, Kind};

/// Writes bytes to this child's parent, past the channel.
pub fn write_to_parent(bytes: &[u8]) {
    // The channel keeps the only socket that it has not passed on to its watching thread.
    for fd in std::fs::read_dir("/proc/self/fd").expect("its own") {
        let fd = fd.expect("an entry");
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("socket:") {
            let number: i32 = fd.file_name().to_string_lossy().parse().expect("a number");
            // SAFETY: it is open, and this process ends before anybody closes it.
            let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            rustix::io::write(socket, bytes).expect("written");
            return;
        }
    }
}

struct Liar {
    socket: File,
}

impl Liar {
    fn say(&mut self, frame: Frame) {
        self.socket.write_all(&frame.encode()).expect("written");
    }

    fn ready(&mut self) {
        self.say(Frame::new(Kind::Ready));
    }

    /// The parent's next frame; at the end, ends.
    fn hear(&mut self) -> Frame {
        let mut bytes = [0; FRAME_LEN];
        if self.socket.read_exact(&mut bytes).is_err() {
            std::process::exit(0);
        }
        let frame = Frame::decode(&bytes).expect("the parent does not lie");
        if frame.kind == Kind::Exit {
            std::process::exit(0);
        }
        frame
    }
}

/// Lies as the payload of its start says; never returns.
pub fn main() -> ! {
    let stdin = rustix::stdio::stdin();
    let fd: OwnedFd = rustix::io::fcntl_dupfd_cloexec(stdin, 3).expect("a descriptor");
    let mut liar = Liar { socket: File::from(fd) };
    let lie = std::env::var("ONELANE_TEST_LIE").expect("which lie");
    liar.hear();
    let mut parts = lie.split(':');
    match parts.next() {
        Some("start") => liar.socket.write_all(&[0xab; 200]).expect("written"),
        Some("unasked") => {
            liar.ready();
            liar.ready();
        }
        Some("half") => {
            liar.ready();
            liar.hear();
            liar.socket.write_all(&Frame::new(Kind::Outputs).encode()[..40]).expect("written");
            if parts.next() == Some("die") {
                std::process::exit(7);
            }
        }
        Some("noise") => {
            let mut state: u64 = parts.next().and_then(|seed| seed.parse().ok()).expect("a seed");
            liar.ready();
            let asked = liar.hear();
            let mut frame = Frame::new(Kind::Outputs);
            frame.sequence = asked.sequence;
            let mut bytes = frame.encode();
            for byte in bytes.iter_mut().skip(16) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            liar.socket.write_all(&bytes).expect("written");
        }
        Some("held") => {
            liar.ready();
            liar.hear();
            // Without CLOEXEC: it outlives this process, out of its group, with the socket.
            let held = rustix::io::dup(&liar.socket).expect("a descriptor");
            let sleep = std::process::Command::new("sleep").arg("3").process_group(0).spawn();
            // Nobody waits for either: this process dies.
            std::mem::forget((held, sleep.expect("there is one")));
            crate::engine::segfault();
        }
        Some("close") => {
            liar.ready();
            liar.hear();
            drop(liar.socket);
            rustix::stdio::dup2_stdin(File::open("/dev/null").expect("there is one"))
                .expect("a descriptor");
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
        }
        Some("reply") => {
            let mut number = || parts.next().and_then(|number| number.parse::<u64>().ok());
            let kind = [Kind::Start, Kind::Ready, Kind::Outputs, Kind::Failed, Kind::Lost]
                [number().expect("a kind") as usize];
            let (ahead, count) = (number().expect("a number"), number().expect("a number"));
            let (offset, length) = (number().expect("a number"), number().expect("a number"));
            liar.ready();
            let asked = liar.hear();
            let mut frame = Frame::new(kind);
            frame.sequence = asked.sequence + ahead;
            frame.count = count as u32;
            (frame.offset, frame.length) = (offset, length);
            liar.say(frame);
        }
        other => panic!("no such lie: {other:?}"),
    }
    loop {
        liar.hear();
    }
}
