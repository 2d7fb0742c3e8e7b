//! Frames over the socket, for both sides.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::frame::{FRAME_LEN, Frame};

/// A socket that is closed on the other side is an error to the writer, and no signal.
fn send_flags() -> SendFlags {
    #[cfg(not(target_vendor = "apple"))]
    return SendFlags::NOSIGNAL;
    #[cfg(target_vendor = "apple")]
    return SendFlags::empty();
}

/// As `send_flags`, where it is a property of the socket.
pub(crate) fn no_signal(socket: &UnixStream) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    rustix::net::sockopt::set_socket_nosigpipe(socket, true)?;
    let _ = socket;
    Ok(())
}

/// Sends a frame.
pub(crate) fn send(socket: &UnixStream, frame: &Frame) -> io::Result<()> {
    let bytes = frame.encode();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match rustix::net::send(socket, rest, send_flags()) {
            Ok(sent) => rest = &rest[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends a frame together with a descriptor.
pub(crate) fn send_with(
    socket: &UnixStream,
    frame: &Frame,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let bytes = frame.encode();
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&files));
    assert!(fits, "the space was made for one descriptor");
    let parts = [IoSlice::new(&bytes)];
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &parts, &mut ancillary, send_flags())
    })?;
    if sent == FRAME_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives the first frame and the descriptor that comes with it.
pub(crate) fn receive_with(socket: &UnixStream) -> io::Result<(Frame, OwnedFd)> {
    let mut bytes = [0; FRAME_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::empty())
    })?;
    let mut file = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last().or(file);
        }
    }
    let file = file.ok_or_else(|| io::Error::other("the parent sent no arena"))?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
    let mut socket = socket;
    socket.read_exact(&mut bytes[received.bytes..])?;
    Ok((Frame::decode(&bytes).map_err(io::Error::other)?, file))
}

/// What there is to read, without reading it or waiting for it.
pub(crate) enum Peeked {
    Nothing,
    Data,
    Closed,
}

pub(crate) fn peek(socket: &UnixStream) -> Peeked {
    let mut byte = [0; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket.as_fd(), &mut byte, flags) {
        Ok((0, _)) => Peeked::Closed,
        Ok(_) => Peeked::Data,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Peeked::Nothing,
        Err(_) => Peeked::Closed,
    }
}

/// About what it takes to let a thread of another process sleep and to wake it again.
const SPIN: Duration = Duration::from_micros(50);

/// What is answered sooner is looked for before who waits sleeps.
pub(crate) const BRIEF: Duration = Duration::from_micros(200);

/// Looks for a moment whether something has come, and lets others run meanwhile.
pub(crate) fn spin(socket: &UnixStream) {
    let end = Instant::now() + SPIN;
    while matches!(peek(socket), Peeked::Nothing) && Instant::now() < end {
        std::thread::yield_now();
    }
}
