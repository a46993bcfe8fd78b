// k-means: the nearest centroid of each point, without storing their distances.

// A block keeps a tile of centroids in shared memory; a thread keeps its point.
template <int DIM>
__global__ void assign_points(const float* __restrict__ points, long long count,
                              const float* __restrict__ centroids, int clusters,
                              int tile, int* __restrict__ nearest,
                              float* __restrict__ distances) {
  extern __shared__ float shared[];
  const long long place = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  float point[DIM];
#pragma unroll
  for (int j = 0; j < DIM; ++j)
    point[j] = place < count ? points[place * DIM + j] : 0.0f;
  int best = 0;
  float least = 3.4e38f;
  for (int start = 0; start < clusters; start += tile) {
    const int held = min(tile, clusters - start);
    __syncthreads();
    for (int k = threadIdx.x; k < held * DIM; k += blockDim.x)
      shared[k] = centroids[(long long)start * DIM + k];
    __syncthreads();
    for (int c = 0; c < held; ++c) {
      float distance = 0.0f;
#pragma unroll
      for (int j = 0; j < DIM; ++j) {
        const float gap = point[j] - shared[c * DIM + j];
        distance = fmaf(gap, gap, distance);
      }
      // Of equal distances the lower number wins.
      if (distance < least) least = distance, best = start + c;
    }
  }
  if (place >= count) return;
  nearest[place] = best;
  distances[place] = least;
}
