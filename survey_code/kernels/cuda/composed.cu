// Reading and pooling rows that several arrays make together, or several layouts.
//
// Every such format is a small class of two steps: `find` turns an id into places
// (digits, offsets, codes), `read` fetches E entries of the row from there and combines
// them.  Where a layout holds rows that are a layout again, its class has the format
// of these as a template's argument, and calls the same two steps.
//
// The threads of a group share a row: each reads its own entries. Were each to find
// the row as well, all would compute the same. Instead each thread finds another row,
// and hands what it found to the group when that row's turn comes.

#include <writing.cuh>

// The threads that share a row: blockDim.x of them, side by side in a warp.
struct Group {
  int lane, lanes;
  unsigned members;

  __device__ __forceinline__ Group() : lane(threadIdx.x), lanes(blockDim.x) {
    const unsigned all = lanes == 32 ? ~0u : (1u << lanes) - 1;
    members = all << (threadIdx.y * lanes & 31);
  }

  // What another thread of the group holds.
  template <class T> __device__ __forceinline__ T take(const T& own, int from) const {
    constexpr int WORDS = sizeof(T) / 4;
    static_assert(sizeof(T) == 4 * WORDS, "handed over in words of 32 bits");
    unsigned words[WORDS];
    memcpy(words, &own, sizeof(T));
#pragma unroll
    for (int w = 0; w < WORDS; ++w)
      words[w] = __shfl_sync(members, words[w], from, lanes);
    T taken;
    memcpy(&taken, words, sizeof(T));
    return taken;
  }
};

// Where a row is, and what its entries are multiplied by.
template <class Place> struct Found {
  Place place;
  float factor;
  int valid;
};

// A bad id is reported, and found where row 0 is, with the factor 0; so is padding,
// without a report.
template <class Format, typename Id>
__device__ __forceinline__ auto find_row(const Format& format, const Id* ids,
                                         const float* weights, long long at,
                                         bool wanted, long long rows,
                                         long long padding, unsigned* flag) {
  const long long id = wanted ? (long long)ids[at] : 0;
  if (!is_row(id, rows)) report(flag, BAD_ID);
  const bool valid = wanted && is_row(id, rows) && id != padding;
  Found<decltype(format.find(id))> found = {format.find(valid ? id : 0)};
  found.factor = valid ? (weights ? weights[at] : 1.0f) : 0.0f;
  found.valid = valid;
  return found;
}

// Rows `from` to `from + N` of those that a group has found, all asked for at once.
template <int N, class Format, class Find, int E = Format::ENTRIES>
__device__ __forceinline__ void read_some(const Format& format, const Group& group,
                                          const Find& mine, int from, int first,
                                          float (&values)[N][E], float (&factors)[N],
                                          bool (&valid)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const auto found = group.take(mine, from + k);
    factors[k] = found.factor;
    valid[k] = found.valid;
    format.read(found.place, first, values[k]);
  }
}

// These rows written out, zeros where the id was bad.
template <int N, class Format, class Find, class Out, int E = Format::ENTRIES>
__device__ __forceinline__ void write_some(const Format& format, const Group& group,
                                           const Find& mine, int from, int first, int dim,
                                           Out* out) {
  float values[N][E], factors[N];
  bool valid[N];
  read_some<N>(format, group, mine, from, first < dim ? first : 0, values, factors, valid);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (!valid[k])
#pragma unroll
      for (int j = 0; j < E; ++j) values[k][j] = 0.0f;
    if (first < dim)
      write_piece(out + (long long)(from + k) * dim + first, values[k], dim - first, dim);
  }
}

template <class Format, typename Id, typename Out, int AHEAD>
__global__ void read_composed(const __grid_constant__ typename Format::Fields fields,
                              long long rows, int dim,
                              const Id* __restrict__ ids, long long count,
                              Out* __restrict__ out, unsigned* flag, int each) {
  constexpr int E = Format::ENTRIES;
  const Group group;
  const long long start = ((long long)blockIdx.x * blockDim.y + threadIdx.y) * each;
  if (start >= count) return;
  const int many = count - start < each ? int(count - start) : each;
  const Format format(fields, dim);
  const auto mine = find_row(format, ids, (const float*)nullptr, start + group.lane,
                             group.lane < many, rows, -1, flag);
  out += start * dim;
  for (int base = 0; base < dim; base += group.lanes * E) {
    const int first = base + group.lane * E;
    int from = 0;
    if constexpr (AHEAD > 1)
      for (; from + AHEAD <= many; from += AHEAD)
        write_some<AHEAD>(format, group, mine, from, first, dim, out);
    for (; from < many; ++from)
      write_some<1>(format, group, mine, from, first, dim, out);
  }
}

// These rows added to what is pooled.
template <int N, class Format, class Find, int E = Format::ENTRIES>
__device__ __forceinline__ void pool_some(const Format& format, const Group& group,
                                          const Find& mine, int from, int first,
                                          int mode, float (&pooled)[E], int& added) {
  float values[N][E], factors[N];
  bool valid[N];
  read_some<N>(format, group, mine, from, first, values, factors, valid);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    added += valid[k];
#pragma unroll
    for (int j = 0; j < E; ++j)
      pooled[j] = mode != MAX ? fmaf(factors[k], values[k][j], pooled[j])
                  : valid[k]  ? fmaxf(pooled[j], values[k][j])
                              : pooled[j];
  }
}

// AHEAD: rows that a thread reads at once. Few are best: the registers that more would
// take leave room for fewer threads, which between them have more reads under way.
template <class Format, typename Id, typename Offset, typename Out, int AHEAD>
__global__ void pool_composed(const __grid_constant__ typename Format::Fields fields,
                              long long rows, int dim,
                              const Id* __restrict__ ids, long long count,
                              const Offset* __restrict__ offsets, long long many_offsets,
                              long long bags, const float* __restrict__ weights,
                              long long padding, Out* __restrict__ out, unsigned* flag,
                              int mode) {
  constexpr int E = Format::ENTRIES;
  const Group group;
  const long long bag = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  if (bag >= bags) return;
  long long begin, end;
  find_bag(offsets, many_offsets, bag, bags, count, begin, end, flag);
  const Format format(fields, dim);
  for (int base = 0; base < dim; base += group.lanes * E) {
    const int first = base + group.lane * E, own = first < dim ? first : 0;
    float pooled[E];
    int added = 0;
    const float least = __uint_as_float(0xFF800000u);    // minus infinity
#pragma unroll
    for (int j = 0; j < E; ++j) pooled[j] = mode == MAX ? least : 0.0f;
    for (long long start = begin; start < end; start += group.lanes) {
      const int many = end - start < group.lanes ? int(end - start) : group.lanes;
      const auto mine = find_row(format, ids, weights, start + group.lane,
                                 group.lane < many, rows, padding, flag);
      int from = 0;
      if constexpr (AHEAD > 1)
        for (; from + AHEAD <= many; from += AHEAD)
          pool_some<AHEAD>(format, group, mine, from, own, mode, pooled, added);
      for (; from < many; ++from)
        pool_some<1>(format, group, mine, from, own, mode, pooled, added);
    }
    const float scale = mode == MEAN && added ? 1.0f / added : 1.0f;
#pragma unroll
    for (int j = 0; j < E; ++j)
      pooled[j] = mode == MAX && !added ? 0.0f : pooled[j] * scale;
    if (first < dim) write_piece(out + bag * dim + first, pooled, dim - first, dim);
  }
}
