//! A world of one.

use crate::{
    Collective, Spent,
    error::{Error, Result},
};

/// The collective of a program that no launcher started: rank 0 of 1, where every call is the identity.
#[derive(Clone, Copy, Debug)]
pub struct Solo;

impl Solo {
    pub(crate) const ENGINE: &str = "solo";
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_world(&self) -> usize {
        1
    }

    fn engine(&self) -> &'static str {
        Solo::ENGINE
    }

    fn broadcast_bytes(&self, root: usize, _: &mut Vec<u8>) -> Result<()> {
        if root == 0 { Ok(()) } else { Err(Error::Root { root, last: 0 }) }
    }

    fn slots(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn agree(&self, _: &str, _: u64) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn reduce_scatter(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn spent(&self) -> Spent {
        Spent::default()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
