// Layouts that hold layouts: ids stored apart, sums of rows, rows times a matrix.

#pragma once

#include "reading.cuh"

// One of two places, whichever was found: told apart by the class that holds it.
template <class First, class Second> struct Either {
  static constexpr int LONGER =
      sizeof(First) > sizeof(Second) ? sizeof(First) : sizeof(Second);
  unsigned words[(LONGER + 3) / 4];

  template <class Place> __device__ __forceinline__ void hold(const Place& place) {
    memcpy(words, &place, sizeof(Place));
  }
  template <class Place> __device__ __forceinline__ Place held() const {
    Place place;
    memcpy(&place, words, sizeof(Place));
    return place;
  }
};

// The ids that no part before has: by their own numbers, or in their order.
template <class Part, bool BY_NUMBER> struct Others {
  static constexpr int ENTRIES = Part::ENTRIES, AHEAD = Part::AHEAD;
  using Fields = OthersFields<Part>;
  using Place = typename Part::Place;
  Part part;

  __device__ __forceinline__ Others(const Fields& f, int dim) : part(f.part, dim) {}
  __device__ __forceinline__ Place find(long long id, long long row) const {
    return part.find(BY_NUMBER ? id : row);
  }
  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[ENTRIES]) const {
    part.read(found, first, entries);
  }
  __device__ __forceinline__ int number(const Place& found, int j) const {
    return part.number(found, j);
  }
#ifdef ON_CPU
  __forceinline__ void fetch(const Place& found) const { fetch_row(part, found); }
#endif
};

// The ids that a part names, by a bit for each; all others are the rest's.
template <class Part, class Rest> struct Routed {
  static constexpr int ENTRIES = Part::ENTRIES,
                       AHEAD = Part::AHEAD < 2 ? Part::AHEAD : 2;
  using Fields = RoutedFields<Part, Rest>;
  Part part;
  Rest rest;
  const unsigned long long* marks;
  const unsigned* ranks;
  long long named;    // ids below it may be marked

  __device__ __forceinline__ Routed(const Fields& f, int dim)
      : part(f.part, dim), rest(f.rest, dim), marks(array<unsigned long long>(f.marks)),
        ranks(array<unsigned>(f.ranks)), named(f.named) {}

  struct Place {
    Either<typename Part::Place, typename Rest::Place> either;
    int own;
  };

  __device__ __forceinline__ Place find(long long id) const { return find(id, id); }

  // row: the id, less those below it that parts before have.
  __device__ __forceinline__ Place find(long long id, long long row) const {
    Place found;
    unsigned long long word = 0;
    long long below = 0;
    if (id < named) {
      word = __ldg(marks + (id >> 6));
      below = __ldg(ranks + (id >> 6)) + __popcll(word & ((1ull << (id & 63)) - 1));
    }
    found.own = word >> (id & 63) & 1;
    if (found.own) found.either.hold(part.find(below));
    else found.either.hold(rest.find(id, row - below));
    return found;
  }

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[ENTRIES]) const {
    if (found.own)
      part.read(found.either.template held<typename Part::Place>(), first, entries);
    else
      rest.read(found.either.template held<typename Rest::Place>(), first, entries);
  }

  __device__ __forceinline__ int number(const Place& found, int j) const {
    if (found.own)
      return part.number(found.either.template held<typename Part::Place>(), j);
    return rest.number(found.either.template held<typename Rest::Place>(), j);
  }
#ifdef ON_CPU
  __forceinline__ void announce(long long id) const {
    if (id < named) fetch_bytes(marks + (id >> 6), 8), fetch_bytes(ranks + (id >> 6), 4);
  }
  __forceinline__ void fetch(const Place& found) const {
    if (found.own) fetch_row(part, found.either.template held<typename Part::Place>());
    else fetch_row(rest, found.either.template held<typename Rest::Place>());
  }
#endif
};

// Rows of one of two kinds: a group's table, beside others of another kind.
template <class First, class Second> struct OneOf {
  static constexpr int ENTRIES = First::ENTRIES, AHEAD = 1;
  using Fields = OneOfFields<First, Second>;
  using Place = Either<typename First::Place, typename Second::Place>;
  First first_part;
  Second second_part;
  bool is_second;

  __device__ __forceinline__ OneOf(const Fields& f, int dim)
      : first_part(f.first_part, dim), second_part(f.second_part, dim),
        is_second(f.is_second) {}

  __device__ __forceinline__ Place find(long long id) const {
    Place found;
    if (is_second) found.hold(second_part.find(id));
    else found.hold(first_part.find(id));
    return found;
  }
  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[ENTRIES]) const {
    if (is_second)
      second_part.read(found.template held<typename Second::Place>(), first, entries);
    else
      first_part.read(found.template held<typename First::Place>(), first, entries);
  }
#ifdef ON_CPU
  __forceinline__ void fetch(const Place& found) const {
    if (is_second)
      fetch_row(second_part, found.template held<typename Second::Place>());
    else
      fetch_row(first_part, found.template held<typename First::Place>());
  }
#endif
};

template <class First, class Second> struct Added {
  static constexpr int ENTRIES = First::ENTRIES, AHEAD = 1;
  using Fields = AddedFields<First, Second>;
  First first_part;
  Second second_part;

  __device__ __forceinline__ Added(const Fields& f, int dim)
      : first_part(f.first_part, dim), second_part(f.second_part, dim) {}

  struct Place {
    typename First::Place one;
    typename Second::Place two;
  };

  __device__ __forceinline__ Place find(long long id) const {
    return {first_part.find(id), second_part.find(id)};
  }
#ifdef ON_CPU
  __forceinline__ void announce(long long id) const {
    announce_row(first_part, id), announce_row(second_part, id);
  }
  __forceinline__ void fetch(const Place& found) const {
    fetch_row(first_part, found.one), fetch_row(second_part, found.two);
  }
#endif

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[ENTRIES]) const {
    float more[ENTRIES];
    first_part.read(found.one, first, entries);
    second_part.read(found.two, first, more);
#pragma unroll
    for (int j = 0; j < ENTRIES; ++j) entries[j] = __fadd_rn(entries[j], more[j]);
  }
};

// Part: its format, one number at a time.  Where rows are turned last of all, a product
// of matrices after the kernel costs less.
template <int E, class Part> struct Turned {
  static constexpr int ENTRIES = E, AHEAD = 1;
  using Fields = TurnedFields<Part>;
  using Place = typename Part::Place;
  Part part;
  const float* matrix;
  int width, dim;

  __device__ __forceinline__ Turned(const Fields& f, int dim)
      : part(f.part, f.width), matrix(array<float>(f.matrix)), width(f.width), dim(dim) {}

  __device__ __forceinline__ Place find(long long id) const { return part.find(id); }
#ifdef ON_CPU
  __forceinline__ void announce(long long id) const { announce_row(part, id); }
  __forceinline__ void fetch(const Place& found) const { fetch_row(part, found); }
#endif

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
    for (int k = 0; k < width; ++k) {
      const float number = read_number(part, found, k);
      float weights[E];
      load_floats<E>(matrix + k * dim + first, weights);
#pragma unroll
      for (int j = 0; j < E; ++j)
        entries[j] = __fadd_rn(entries[j], __fmul_rn(number, weights[j]));
    }
  }
};
