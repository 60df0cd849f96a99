//! Where the kernel enters the program, before the C library's own beginning.
//!
//! What puts processes into containers is executed anew through a read-only mount (`cli/own_file.rs`). What the C library
//! does at a start, half a millisecond where a hypervisor answers CPUID, would be done for nothing before that. So the
//! same system calls are made here first, for every command, whose name need not be looked for then. When any of them
//! fails, the program goes on as if nothing had been tried, tries again there, and tells what is wrong.
//!
//! In assembly, for nothing is relocated yet: whatever a compiler calls, be it for copying bytes or for a check in a debug
//! build, may lead nowhere.

use std::arch::global_asm;

use nix::libc;
use roster_runtime::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_RDONLY};

/// Bytes of `struct statfs`, and where its flags are.
const STATFS: usize = 120;
const STATFS_FLAGS: usize = 80;
const ST_RDONLY: usize = 1;

// The stack is as the kernel leaves it: the number of arguments, they, a null, the environment. The C library's `_start`
// finds it, and rdx, as they were.
global_asm!(
    ".globl roster_entry",
    "roster_entry:",
    "mov rbx, rsp",
    "mov rbp, rdx",
    "sub rsp, {statfs}",
    // Is the file on a read-only mount already?
    "lea rdi, [rip + 20f]",
    "mov rsi, rsp",
    "mov eax, {statfs_call}",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "test qword ptr [rsp + {statfs_flags}], {read_only}",
    "jnz 9f",
    // A copy of its mount.
    "mov edi, {here}",
    "lea rsi, [rip + 20f]",
    "mov edx, {clone}",
    "mov eax, {open_tree}",
    "syscall",
    "test rax, rax",
    "js 9f",
    "mov r14, rax",
    // Read-only.
    "mov qword ptr [rsp], {attributes}",
    "mov qword ptr [rsp + 8], 0",
    "mov qword ptr [rsp + 16], 0",
    "mov qword ptr [rsp + 24], 0",
    "mov rdi, r14",
    "lea rsi, [rip + 21f]",
    "mov edx, {empty_path}",
    "mov r10, rsp",
    "mov r8d, 32",
    "mov eax, {mount_setattr}",
    "syscall",
    "test rax, rax",
    "jnz 10f",
    // /proc/self/fd/NUMBER, from its end.
    "lea rdi, [rsp + 63]",
    "mov byte ptr [rdi], 0",
    "mov eax, r14d",
    "mov ecx, 10",
    "11:",
    "xor edx, edx",
    "div ecx",
    "add dl, '0'",
    "dec rdi",
    "mov [rdi], dl",
    "test eax, eax",
    "jnz 11b",
    "sub rdi, 14",
    "mov rax, [rip + 22f]",
    "mov [rdi], rax",
    "mov rax, [rip + 22f + 6]",
    "mov [rdi + 6], rax",
    "lea rsi, [rbx + 8]", // the arguments
    "mov rdx, [rbx]",
    "lea rdx, [rsi + 8 * rdx + 8]", // the environment
    "mov eax, {execve}",
    "syscall",
    "10:",
    "mov rdi, r14",
    "mov eax, {close}",
    "syscall",
    "9:",
    "mov rsp, rbx",
    "mov rdx, rbp",
    "jmp _start",
    ".pushsection .rodata.roster_entry, \"a\"",
    "20: .asciz \"/proc/self/exe\"",
    "21: .asciz \"\"",
    "22: .ascii \"/proc/self/fd/\"",
    ".popsection",
    statfs = const STATFS + 8,
    statfs_flags = const STATFS_FLAGS,
    read_only = const ST_RDONLY,
    attributes = const MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
    here = const libc::AT_FDCWD,
    clone = const libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
    empty_path = const libc::AT_EMPTY_PATH,
    statfs_call = const libc::SYS_statfs,
    open_tree = const libc::SYS_open_tree,
    mount_setattr = const libc::SYS_mount_setattr,
    execve = const libc::SYS_execve,
    close = const libc::SYS_close,
);
