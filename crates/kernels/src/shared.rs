//! One slice that several threads write, each its own part.

use std::marker::PhantomData;

/// Elements that tasks write concurrently, each task its own.
pub(crate) struct Shared<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// SAFETY: the only access is `slice`, whose callers promise that no two threads meet.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(elements: &'a mut [T]) -> Shared<'a, T> {
        Shared(elements.as_mut_ptr(), elements.len(), PhantomData)
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    ///
    /// While the slice lives, nobody else asks for any of its elements.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(len <= self.1 && start <= self.1 - len, "a slice outside the shared elements");
        // SAFETY: inside the borrowed elements by the assertion, and unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
