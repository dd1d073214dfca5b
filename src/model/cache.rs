//! Keys and values of the positions that a model has read, in pages of a pool.

use std::sync::{Arc, Mutex};

use crate::config::{KvFormat, ModelConfig};
use crate::kernels::{Buffer, KvMemory, KvPage, PAGE};

/// Pages that sequences share among themselves and give back when they end.
///
/// A page holds the keys and values of [`PAGE`] positions, all layers. Several sequences may hold the same page, where they
/// begin alike; who writes to a page that others hold gets a copy of it first.
#[derive(Clone, Debug)]
pub struct KvPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    format: KvFormat,
    layers: usize,
    heads: usize,
    dim: usize,
    /// Pages at most.
    limit: usize,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    free: Vec<KvMemory>,
    in_use: usize,
}

impl KvPool {
    /// A pool that grows as it is asked for pages, to so many positions, rounded up to whole pages.
    pub fn new(config: &ModelConfig, format: KvFormat, positions: usize) -> Self {
        KvPool(Arc::new(Inner {
            format,
            layers: config.layers,
            heads: config.kv_heads,
            dim: config.head_dim,
            limit: positions.div_ceil(PAGE),
            pages: Mutex::default(),
        }))
    }

    /// A sequence of no positions yet.
    pub fn sequence(&self) -> KvCache {
        KvCache { pool: self.clone(), pages: Vec::new(), len: 0 }
    }

    /// Pages that sequences hold, each counted once.
    pub fn in_use(&self) -> usize {
        self.0.pages.lock().expect("no thread fails here").in_use
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        let Inner { format, heads, dim, .. } = *self.0;
        KvMemory::bytes(format, self.0.sections(), heads, dim)
    }

    fn page(&self) -> Option<Page> {
        let mut pages = self.0.pages.lock().expect("no thread fails here");
        if pages.in_use == self.0.limit {
            return None;
        }
        pages.in_use += 1;
        let Inner { format, heads, dim, .. } = *self.0;
        let memory = pages.free.pop();
        let memory = memory.unwrap_or_else(|| KvMemory::zeros(format, self.0.sections(), heads, dim));
        Some(Page { pool: self.clone(), memory: Some(memory) })
    }
}

impl Inner {
    /// Keys and values of every layer.
    fn sections(&self) -> usize {
        self.layers * 2
    }
}

/// Keys, then values, of every layer: `[layers, 2, PAGE, KV, D]`.
#[derive(Debug)]
struct Page {
    pool: KvPool,
    /// Taken when it is dropped.
    memory: Option<KvMemory>,
}

impl Page {
    fn memory(&self) -> &KvMemory {
        self.memory.as_ref().expect("a page has memory while it lives")
    }
    fn memory_mut(&mut self) -> &mut KvMemory {
        self.memory.as_mut().expect("a page has memory while it lives")
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Ok(mut pages) = self.pool.0.pages.lock() {
            pages.in_use -= 1;
            pages.free.extend(self.memory.take());
        }
    }
}

/// A layer's keys, or its values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Keys,
    Values,
}

impl Part {
    /// Its section of a page.
    fn of(self, layer: usize) -> usize {
        2 * layer + self as usize
    }
}

/// Keys and values of every layer for one sequence.
#[derive(Clone, Debug)]
pub struct KvCache {
    pool: KvPool,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl KvCache {
    /// Positions seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How keys and values are kept.
    pub fn format(&self) -> KvFormat {
        self.pool.0.format
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Another sequence with the same first `len` positions; pages are shared until one of the two writes to them.
    pub fn fork(&self, len: usize) -> KvCache {
        let mut other = self.clone();
        other.truncate(len);
        other
    }

    /// Makes room for `more` positions; `false`, and nothing done, if the pool has not enough pages left.
    #[must_use]
    pub fn reserve(&mut self, more: usize) -> bool {
        let held = self.pages.len();
        // The page that is written next may be shared.
        let next = self.len / PAGE;
        let shared = more > 0 && next < held && Arc::strong_count(&self.pages[next]) > 1;
        let copy = if shared { self.pool.page() } else { None };
        if shared && copy.is_none() {
            return false;
        }
        while self.pages.len() < (self.len + more).div_ceil(PAGE) {
            let Some(page) = self.pool.page() else {
                self.pages.truncate(held);
                return false;
            };
            self.pages.push(Arc::new(page));
        }
        if let Some(mut page) = copy {
            page.memory_mut().copy_from(self.pages[next].memory());
            self.pages[next] = Arc::new(page);
        }
        true
    }

    /// Writes `rows`, `[n, KV, D]`, of the positions that follow those seen. There is room for them.
    pub(super) fn write(&mut self, layer: usize, part: Part, rows: &Buffer, from: usize, count: usize) {
        let width = self.pool.0.heads * self.pool.0.dim;
        let mut done = 0;
        while done < count {
            let position = self.len + done;
            let some = (PAGE - position % PAGE).min(count - done);
            let page = Arc::get_mut(&mut self.pages[position / PAGE]).expect("a reserved page is not shared");
            let rows = rows.rows(width, from + done..from + done + some);
            page.memory_mut().write(part.of(layer), position % PAGE, rows);
            done += some;
        }
    }

    /// The pages of a layer that hold the first `positions`.
    pub(super) fn read(&self, layer: usize, part: Part, positions: usize) -> Vec<KvPage<'_>> {
        let pages = self.pages[..positions.div_ceil(PAGE)].iter();
        pages.map(|page| page.memory().section(part.of(layer))).collect()
    }

    /// Counts the positions that every layer has written.
    pub(super) fn advance(&mut self, count: usize) {
        self.len += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recipe;
    use crate::kernels::KvRows;

    fn pool(positions: usize) -> KvPool {
        let recipe: Recipe = toml::from_str(include_str!("../../recipes/copy.toml")).unwrap();
        let config = ModelConfig { layers: 2, kv_heads: 1, head_dim: 2, ..recipe.model.unwrap() };
        KvPool::new(&config, KvFormat::F32, positions)
    }

    fn push(cache: &mut KvCache, rows: usize, value: f32) {
        assert!(cache.reserve(rows));
        for layer in 0..2 {
            let x = Buffer::from(vec![value + layer as f32; 2 * rows]);
            cache.write(layer, Part::Keys, &x, 0, rows);
            cache.write(layer, Part::Values, &x, 0, rows);
        }
        cache.advance(rows);
    }

    #[test]
    fn sequences_share_pages_until_one_writes() {
        let pool = pool(4 * PAGE);
        let mut a = pool.sequence();
        push(&mut a, PAGE + 10, 1.0);
        let mut b = a.fork(PAGE + 5);
        assert_eq!((b.len(), pool.in_use()), (PAGE + 5, 2));
        push(&mut b, 3, 7.0);
        assert_eq!(pool.in_use(), 3, "the first page is still shared");
        let key = |cache: &KvCache, at: usize| match cache.read(1, Part::Keys, cache.len())[at / PAGE].head(0)
        {
            KvRows::F32(rows) => rows[at % PAGE * 2],
            other => panic!("{other:?}"),
        };
        assert_eq!([key(&a, 3), key(&a, PAGE + 6)], [2.0, 2.0]);
        assert_eq!([key(&b, 3), key(&b, PAGE + 4), key(&b, PAGE + 6)], [2.0, 2.0, 8.0]);
        // Many rows run over the ends of pages.
        push(&mut b, PAGE + 2, 20.0);
        assert_eq!([key(&b, PAGE + 7), key(&b, 2 * PAGE + 9)], [8.0, 21.0]);
        assert_eq!(b.read(0, Part::Values, b.len()).len(), 3);
        drop(b);
        assert_eq!(pool.in_use(), 2);
    }

    #[test]
    fn a_pool_that_is_empty_says_so_and_changes_nothing() {
        let pool = pool(2 * PAGE);
        let mut a = pool.sequence();
        push(&mut a, PAGE, 1.0);
        assert!(!a.reserve(PAGE + 1));
        assert_eq!(pool.in_use(), 1);
        push(&mut a, 1, 1.0);
        let mut b = a.fork(PAGE + 1);
        assert!(!b.reserve(1), "the page that it shares would have to be copied");
        b.truncate(PAGE);
        assert!(!b.reserve(1));
        drop(a);
        assert!(b.reserve(1));
    }
}
