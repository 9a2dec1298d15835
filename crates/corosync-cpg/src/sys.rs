// SPDX-License-Identifier: GPL-2.0-or-later
//! Declarations of `corosync/cpg.h`, `corosync/cmap.h` and `corosync/corotypes.h` that this crate uses.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `cs_error_t`
pub(crate) type ResultCode = c_int;

pub(crate) const OK: ResultCode = 1;
pub(crate) const ERR_LIBRARY: ResultCode = 2;
pub(crate) const ERR_TRY_AGAIN: ResultCode = 6;
pub(crate) const ERR_INVALID_PARAM: ResultCode = 7;
pub(crate) const ERR_BAD_HANDLE: ResultCode = 9;
pub(crate) const ERR_ACCESS: ResultCode = 11;
pub(crate) const ERR_NOT_EXIST: ResultCode = 12;
pub(crate) const ERR_EXIST: ResultCode = 14;
pub(crate) const ERR_NO_SECTIONS: ResultCode = 27;
pub(crate) const ERR_SECURITY: ResultCode = 100;
pub(crate) const ERR_TOO_BIG: ResultCode = 26;

pub(crate) const DISPATCH_ONE_NONBLOCKING: c_int = 4;
pub(crate) const DISPATCH_ALL: c_int = 2;

pub(crate) const CPG_MODEL_V1: c_int = 1;
pub(crate) const CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF: c_uint = 1;
pub(crate) const CPG_TYPE_AGREED: c_int = 2;
pub(crate) const CPG_MAX_NAME_LENGTH: usize = 128;
pub(crate) const CPG_MEMBERS_MAX: usize = 128;

pub(crate) const CMAP_KEYNAME_MAXLEN: usize = 255;
pub(crate) const CMAP_TRACK_ANY_BELOW: i32 = 1 | 2 | 4 | 8;
pub(crate) const CMAP_VALUETYPE_STRING: c_int = 11;

/// `struct cpg_name`
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CpgName {
    pub(crate) length: u32,
    pub(crate) value: [u8; CPG_MAX_NAME_LENGTH],
}

/// `struct cpg_address`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct CpgAddress {
    pub(crate) nodeid: u32,
    pub(crate) pid: u32,
    pub(crate) reason: u32,
}

/// `struct cpg_ring_id`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CpgRingId {
    pub(crate) nodeid: u32,
    pub(crate) seq: u64,
}

/// `cpg_model_v1_data_t`
#[repr(C)]
pub(crate) struct CpgModelV1 {
    pub(crate) model: c_int,
    pub(crate) deliver: extern "C" fn(u64, *const CpgName, u32, u32, *mut c_void, usize),
    pub(crate) change: extern "C" fn(
        u64,
        *const CpgName,
        *const CpgAddress,
        usize,
        *const CpgAddress,
        usize,
        *const CpgAddress,
        usize,
    ),
    pub(crate) ring: extern "C" fn(u64, CpgRingId, u32, *const u32),
    pub(crate) flags: c_uint,
}

/// `struct iovec`
#[repr(C)]
pub(crate) struct IoVec {
    pub(crate) base: *const c_void,
    pub(crate) len: usize,
}

/// `struct cmap_notify_value`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CmapValue {
    pub(crate) kind: c_int,
    pub(crate) len: usize,
    pub(crate) data: *const c_void,
}

pub(crate) type CmapNotify = extern "C" fn(u64, u64, i32, *const c_char, CmapValue, CmapValue, *mut c_void);

#[link(name = "cpg")]
unsafe extern "C" {
    pub(crate) fn cpg_model_initialize(
        handle: *mut u64,
        model: c_int,
        data: *mut CpgModelV1,
        context: *mut c_void,
    ) -> ResultCode;
    pub(crate) fn cpg_finalize(handle: u64) -> ResultCode;
    pub(crate) fn cpg_fd_get(handle: u64, fd: *mut c_int) -> ResultCode;
    pub(crate) fn cpg_max_atomic_msgsize_get(handle: u64, size: *mut u32) -> ResultCode;
    pub(crate) fn cpg_dispatch(handle: u64, how: c_int) -> ResultCode;
    pub(crate) fn cpg_join(handle: u64, group: *const CpgName) -> ResultCode;
    pub(crate) fn cpg_leave(handle: u64, group: *const CpgName) -> ResultCode;
    pub(crate) fn cpg_mcast_joined(
        handle: u64,
        guarantee: c_int,
        parts: *const IoVec,
        count: c_uint,
    ) -> ResultCode;
    pub(crate) fn cpg_membership_get(
        handle: u64,
        group: *mut CpgName,
        members: *mut CpgAddress,
        count: *mut c_int,
    ) -> ResultCode;
    pub(crate) fn cpg_local_get(handle: u64, node: *mut c_uint) -> ResultCode;
}

#[link(name = "cmap")]
unsafe extern "C" {
    pub(crate) fn cmap_initialize(handle: *mut u64) -> ResultCode;
    pub(crate) fn cmap_finalize(handle: u64) -> ResultCode;
    pub(crate) fn cmap_fd_get(handle: u64, fd: *mut c_int) -> ResultCode;
    pub(crate) fn cmap_dispatch(handle: u64, how: c_int) -> ResultCode;
    pub(crate) fn cmap_get(
        handle: u64,
        key: *const c_char,
        value: *mut c_void,
        len: *mut usize,
        kind: *mut c_int,
    ) -> ResultCode;
    pub(crate) fn cmap_get_uint8(handle: u64, key: *const c_char, value: *mut u8) -> ResultCode;
    pub(crate) fn cmap_get_uint32(handle: u64, key: *const c_char, value: *mut u32) -> ResultCode;
    pub(crate) fn cmap_iter_init(handle: u64, prefix: *const c_char, iter: *mut u64) -> ResultCode;
    pub(crate) fn cmap_iter_next(
        handle: u64,
        iter: u64,
        key: *mut c_char,
        len: *mut usize,
        kind: *mut c_int,
    ) -> ResultCode;
    pub(crate) fn cmap_iter_finalize(handle: u64, iter: u64) -> ResultCode;
    pub(crate) fn cmap_track_add(
        handle: u64,
        key: *const c_char,
        kind: i32,
        notify: CmapNotify,
        data: *mut c_void,
        track: *mut u64,
    ) -> ResultCode;
}
