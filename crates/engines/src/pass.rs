//! [`Passes`]: numbers up, through a model, and back; recorded where the device can do that.

use std::hash::Hash;

use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::Graphs;

/// The passes of one model, which differ in shape.
pub(crate) struct Passes<K> {
    device: Device,
    #[cfg(feature = "cuda")]
    graphs: Option<Graphs<K>>,
    #[cfg(not(feature = "cuda"))]
    shapes: std::marker::PhantomData<fn(K)>,
}

impl<K: Eq + Hash> Passes<K> {
    /// For a model of this device that the calling thread is to use. Others may, more slowly on CUDA.
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            graphs: Graphs::new(device),
            #[cfg(not(feature = "cuda"))]
            shapes: std::marker::PhantomData,
            device: device.clone(),
        }
    }

    /// Records nothing.
    pub(crate) fn without_graphs(self) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            graphs: None,
            ..self
        }
    }

    /// Sends `count` numbers, which `fill` writes, through `work`, and has `read` look at what came
    /// back, one row after the other.
    ///
    /// Passes of equal `shape` must be of equal `count` and do the same work. What `fill` leaves is zero,
    /// or as an earlier pass of the shape had it.
    pub(crate) fn run<T>(
        &self,
        shape: K,
        count: usize,
        fill: impl Fn(&mut [f32]),
        work: impl Fn(Tensor) -> Result<Tensor>,
        read: impl Fn(&[f32]) -> T,
    ) -> Result<T> {
        #[cfg(feature = "cuda")]
        if let Some(graphs) = &self.graphs
            && let Some(answer) = graphs.run(shape, count, &fill, &work, &read)?
        {
            return Ok(answer);
        }
        #[cfg(not(feature = "cuda"))]
        drop(shape);
        self.run_once(count, fill, work, read)
    }

    /// The same without a record.
    pub(crate) fn run_once<T>(
        &self,
        count: usize,
        fill: impl FnOnce(&mut [f32]),
        work: impl FnOnce(Tensor) -> Result<Tensor>,
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T> {
        let mut numbers = vec![0.0; count];
        fill(&mut numbers);
        let y = work(Tensor::from_vec(numbers, count, &self.device)?)?;
        // Reading back waits for the device.
        Ok(read(&y.flatten_all()?.to_vec1::<f32>()?))
    }
}
