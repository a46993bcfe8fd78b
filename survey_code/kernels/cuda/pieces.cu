// Reading and pooling rows of one table, stored as numbers or in few bits.
//
// Such a format says how one thread reads its share of a row: E entries that lie side
// by side, a "piece", and how pieces are added up.
//
//   read_rows   one row per id, written out in float32
//   pool_rows   sum or mean over bags of ids
//   max_rows    maximum over bags of ids
//
// A look-up computes almost nothing, so its speed is decided by how many rows are
// under way at once. Each thread therefore first asks for several rows, and only then
// uses any of them.

#include <writing.cuh>

template <class Format, typename Id, typename Out>
__global__ void read_rows(const __grid_constant__ typename Format::Fields fields,
                          long long rows, int dim, const Id* __restrict__ ids,
                          long long count, Out* __restrict__ out, unsigned* flag) {
  constexpr int E = Format::ENTRIES, AHEAD = 4;
  const Format format(fields, dim);
  const long long block = (long long)blockIdx.x * AHEAD * blockDim.y;
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    typename Format::Piece pieces[AHEAD];
    bool valid[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const long long place = block + (long long)k * blockDim.y + threadIdx.y;
      valid[k] = false;
      if (place >= count) continue;
      const long long id = ids[place];
      valid[k] = is_row(id, rows);
      if (valid[k]) pieces[k] = format.piece(id, piece);
      else report(flag, BAD_ID);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const long long place = block + (long long)k * blockDim.y + threadIdx.y;
      if (place >= count) continue;
      float values[E];
#pragma unroll
      for (int j = 0; j < E; ++j) values[j] = valid[k] ? pieces[k].value(j) : 0.0f;
      write_piece<true>(out + place * dim + piece * E, values, dim - piece * E, dim);
    }
  }
}

template <class Format, typename Id, typename Offset, typename Out>
__global__ void pool_rows(const __grid_constant__ typename Format::Fields fields,
                          long long rows, int dim, const Id* __restrict__ ids,
                          long long count, const Offset* __restrict__ offsets,
                          long long many, long long bags,
                          const float* __restrict__ weights, long long padding,
                          Out* __restrict__ out, unsigned* flag, int mode) {
  constexpr int E = Format::ENTRIES, AHEAD = Format::AHEAD;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long first, last;
  find_bag(offsets, many, bag, bags, count, first, last, flag);
  const Format format(fields, dim);
  const Id* own = ids + first;
  const int length = last - first;
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    typename Format::Sum sum;
    int added = 0;
    for (int start = 0; start < length; start += AHEAD) {
      typename Format::Piece pieces[AHEAD];
      float factors[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        factors[k] = 0.0f;
        pieces[k] = typename Format::Piece();
        if (start + k >= length) continue;
        const long long id = own[start + k];
        if (!is_row(id, rows)) {
          report(flag, BAD_ID);
        } else if (id != padding) {
          factors[k] = weights ? weights[first + start + k] : 1.0f;
          pieces[k] = format.piece(id, piece);
          ++added;
        }
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) sum.add(pieces[k], factors[k]);
    }
    const float scale = mode == MEAN && added ? 1.0f / added : 1.0f;
    float values[E];
#pragma unroll
    for (int j = 0; j < E; ++j) values[j] = sum.value(j) * scale;
    write_piece(out + bag * dim + piece * E, values, dim - piece * E, dim);
  }
}

// Weights and mode are not asked for: arguments are those of `pool_rows`.
template <class Format, typename Id, typename Offset, typename Out>
__global__ void max_rows(const __grid_constant__ typename Format::Fields fields,
                         long long rows, int dim, const Id* __restrict__ ids,
                         long long count, const Offset* __restrict__ offsets,
                         long long many, long long bags, const float*,
                         long long padding, Out* __restrict__ out, unsigned* flag,
                         int) {
  constexpr int E = Format::ENTRIES;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long first, last;
  find_bag(offsets, many, bag, bags, count, first, last, flag);
  const Format format(fields, dim);
  for (int piece = threadIdx.x; piece * E < dim; piece += blockDim.x) {
    float largest[E];
    bool any = false;
#pragma unroll
    for (int j = 0; j < E; ++j) largest[j] = 0.0f;
    for (long long place = first; place < last; ++place) {
      const long long id = ids[place];
      if (!is_row(id, rows)) report(flag, BAD_ID);
      if (!is_row(id, rows) || id == padding) continue;
      const auto row = format.piece(id, piece);
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const float value = row.value(j);
        largest[j] = any ? fmaxf(largest[j], value) : value;
      }
      any = true;
    }
    write_piece(out + bag * dim + piece * E, largest, dim - piece * E, dim);
  }
}
