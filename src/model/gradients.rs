//! Gradients, a table beside the weights that they belong to.

use std::fmt;
use std::ops::Range;

use super::Weight;
use crate::kernels::{self, Buffer};

/// The gradients of some weights: those of a layer, or of a model, at the places of [`Weight::index`].
///
/// A backward pass reads the weights and adds to these. Several passes share the weights, each with gradients of its own.
///
/// ```
/// use ternlm::model::{Gradients, Latents, Linear, Role};
/// let mut layer = Linear::new("layer", 256, 8, Role::FeedForward, Some(Default::default()), false);
/// let mut latents = Latents::random(layer.weights_mut(), 0, None)?;
/// let mut grads = Gradients::zeros(layer.weights());
/// let (x, dy, mut dx) = ([1.0; 256], [0.5; 8], [0.0; 256]);
/// layer.backward(&x, &dy, &mut dx, &mut grads);
/// assert!(grads.get(&layer.weight).iter().all(|g| *g == 0.5));
/// # Ok::<(), ternlm::Error>(())
/// ```
///
/// They lie in blocks, the weights of one after the other. A backward pass runs from the last weight to the first, and a block
/// that will not be added to any more can leave for elsewhere while the pass goes on ([`Gradients::set_outlet`]).
#[derive(Debug, Default)]
pub struct Gradients {
    blocks: Vec<Buffer>,
    /// The first weight of each block.
    firsts: Vec<usize>,
    /// Of each weight.
    places: Vec<Place>,
    /// Something may have been added since all were zero.
    touched: bool,
    outlet: Option<Outlet>,
    /// Blocks that have not left.
    here: usize,
}

/// Where the gradient of a weight lies.
#[derive(Clone, Debug)]
pub struct Place {
    pub block: usize,
    /// Values of the block.
    pub values: Range<usize>,
}

/// Takes blocks by their number.
pub struct Outlet(pub Box<dyn FnMut(usize, Buffer) + Send>);

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlet")
    }
}

/// Values after which a block is full; a weight of as many has one of its own.
const FULL: usize = 1 << 20;
/// Weights begin at multiples of so many values: a line of the cache.
const LINE: usize = 16;

impl Gradients {
    /// Zeros, as many as the weights have values.
    pub fn zeros<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> Self {
        let (mut lens, mut firsts, mut places) = (Vec::<usize>::new(), Vec::new(), Vec::new());
        for (index, weight) in weights.into_iter().enumerate() {
            let len = weight.len().next_multiple_of(LINE);
            if lens.last().is_none_or(|full| full.max(&len) >= &FULL) {
                lens.push(0);
                firsts.push(index);
            }
            let block = lens.len() - 1;
            places.push(Place { block, values: lens[block]..lens[block] + weight.len() });
            lens[block] += len;
        }
        let here = lens.len();
        Self {
            blocks: lens.into_iter().map(Buffer::zeros).collect(),
            firsts,
            places,
            touched: false,
            outlet: None,
            here,
        }
    }

    /// That of one of the weights, to be added to.
    pub fn of(&mut self, weight: &Weight) -> &mut [f32] {
        self.touched = true;
        let Place { block, values } = self.places[weight.index()].clone();
        assert_eq!(values.len(), weight.len(), "values in the gradient of {}", weight.name);
        assert!(block < self.here, "the gradient of {} has left", weight.name);
        self.blocks[block].rows_mut(1, values)
    }

    /// That of one of the weights.
    pub fn get(&self, weight: &Weight) -> &[f32] {
        let Place { block, values } = self.places[weight.index()].clone();
        self.blocks[block].rows(1, values)
    }

    /// Where that of one of the weights lies.
    pub fn place(&self, weight: &Weight) -> &Place {
        &self.places[weight.index()]
    }

    /// Values of each block.
    pub fn lens(&self) -> Vec<usize> {
        self.blocks.iter().map(|block| block.len()).collect()
    }

    /// Sets all to zero; costs nothing after a step of the optimizer, which leaves them there.
    pub fn zero(&mut self) {
        if std::mem::take(&mut self.touched) {
            self.blocks.iter_mut().for_each(|block| kernels::fill_zero(block));
        }
    }

    /// Whoever was handed them by [`Gradients::of`] has left zeros.
    pub fn left_at_zero(&mut self) {
        self.touched = false;
    }

    /// From now on blocks leave through `outlet` as soon as a backward pass has finished them, the last one first. Each is to
    /// come back by [`Gradients::put`].
    pub fn set_outlet(&mut self, outlet: Option<Outlet>) {
        self.outlet = outlet;
    }

    /// Those of `weight` and of all weights after it will not be added to any more.
    pub(super) fn finished_from(&mut self, weight: &Weight) {
        let Some(Outlet(outlet)) = &mut self.outlet else { return };
        while self.here > 0 && self.firsts[self.here - 1] >= weight.index() {
            self.here -= 1;
            outlet(self.here, std::mem::take(&mut self.blocks[self.here]));
        }
    }

    /// A block comes back. All have to before any is used.
    pub fn put(&mut self, block: usize, values: Buffer) {
        self.blocks[block] = values;
        self.here = self.here.max(block + 1);
    }

    /// Takes the outlet away while a pass is one of several.
    pub(super) fn hold(&mut self) -> Option<Outlet> {
        self.outlet.take()
    }

    /// Makes these as large as `other`, zeros where they are new.
    pub(super) fn fit(&mut self, other: &Gradients) {
        self.blocks.resize_with(other.blocks.len(), Buffer::default);
        self.blocks.iter_mut().zip(&other.blocks).for_each(|(block, other)| block.resize(other.len()));
        self.firsts.clone_from(&other.firsts);
        self.places.clone_from(&other.places);
        self.here = other.here;
    }

    /// Adds those of `other`, and leaves zeros there.
    pub(super) fn absorb(&mut self, other: &mut Gradients) {
        self.touched = true;
        self.blocks
            .iter_mut()
            .zip(&mut other.blocks)
            .for_each(|(block, other)| kernels::absorb(block, other));
        other.touched = false;
    }
}
