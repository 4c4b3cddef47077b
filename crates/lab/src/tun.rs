//! A TUN device that hands out and takes in whole super-packets, each behind its virtio header.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::segment::VIRTIO;
use crate::sys;

/// The largest frame: a virtio header and the longest IP packet.
pub(crate) const FRAME: usize = VIRTIO + 65_535;

pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes the device in the calling thread's namespace; it vanishes with this value.
    pub(crate) fn open(name: &str) -> io::Result<Tun> {
        Ok(Tun {
            file: sys::open_tun(name)?,
        })
    }

    /// Reads the next frame into `buffer` (of [`FRAME`] bytes); `None` when there is none now.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Hands a frame to the namespace's network stack.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
