//! Files as block devices: loop(4).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::libc;

use super::check;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82 as libc::Ioctl;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a as libc::Ioctl;
/// The device lets go of the file when nobody has it open or mounted any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the host's page cache, which has the content once already: of the file system on the device.
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
#[derive(Default)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    /// 64 bytes of a name, 64 of a cipher's, 32 of a key.
    names: [[u64; 4]; 5],
    init: [u64; 2],
}

#[repr(C)]
#[derive(Default)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a device that nobody uses just now, made when there is none. `control`: /dev/loop-control.
pub fn free_loop_device(control: impl AsFd) -> io::Result<libc::c_int> {
    // SAFETY: this request has no argument.
    let number = check(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
    libc::c_int::try_from(number).map_err(io::Error::other)
}

/// Shows `file` as the device, until nobody uses that any more. EBUSY: somebody else was faster. Linux 5.8.
pub fn attach_loop_device(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let file = u32::try_from(file.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let info = LoopInfo { flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, ..LoopInfo::default() };
    let config = LoopConfig { file, info, ..LoopConfig::default() };
    // SAFETY: the request reads a struct loop_config, whose layout this is and which outlives the call.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }
}
