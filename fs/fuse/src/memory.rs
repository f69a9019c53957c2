//! unsafe: mallopt and malloc_trim. How the C library keeps memory: in one place, and nothing of it for long.
//!
//! By itself it gives each thread a heap of its own, of which nothing goes back before all of its end is free; what one worker allocates and another
//! frees then leaves all of them full of holes. Workers are few and allocate little, so one heap for all costs no time.

#![allow(unsafe_code)]

/// For a program that serves one mount. Call it before there are threads.
pub(crate) fn keep_in_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that the allocator looks at when a thread first allocates; any value is valid.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free. It looks through all that is, so it is for a moment in which there is nothing to do.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called by any thread at any time; it touches free memory only.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
