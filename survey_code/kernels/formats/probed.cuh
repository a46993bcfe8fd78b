// Rows in slots: an id's is the one, of a short window, in which the id itself stands.

#pragma once

#include "reading.cuh"

template <int E, class Values, typename Identity> struct Probed {
  static constexpr int ENTRIES = E, AHEAD = Values::AHEAD < 2 ? Values::AHEAD : 2;
  using Fields = ProbedFields<Values>;
  const Fields& f;
  Values values;
  const Identity* identities;

  __device__ __forceinline__ Probed(const Fields& f, int dim)
      : f(f), values(f.values, dim), identities(array<Identity>(f.identities)) {}

  struct Place {
    typename Values::Place row;
    int known;    // 0 where the row is zeros
  };

  __device__ __forceinline__ Place find(long long id) const {
    const unsigned long long mixed = mix(id, f.numbers[0], f.numbers[1], f.numbers[2]);
    long long slot = mixed - divide(mixed, f.slots, f.inverse) * f.slots;
    long long found = f.missing;
    for (int step = 0; step < f.window; ++step) {
      if ((long long)__ldg(identities + slot) == id) {
        found = slot;
        break;
      }
      if (++slot == f.slots) slot = 0;
    }
    return {values.find(found < 0 ? 0 : found), found >= 0};
  }

#ifdef ON_CPU
  __forceinline__ void announce(long long id) const {
    const unsigned long long mixed = mix(id, f.numbers[0], f.numbers[1], f.numbers[2]);
    const long long slot = mixed - divide(mixed, f.slots, f.inverse) * f.slots;
    fetch_bytes(identities + slot, f.window * sizeof(Identity));
  }
  __forceinline__ void fetch(const Place& found) const { fetch_row(values, found.row); }
#endif

  __device__ __forceinline__ void read(const Place& found, int first,
                                       float (&entries)[E]) const {
    values.read(found.row, first, entries);
    if (found.known) return;
#pragma unroll
    for (int j = 0; j < E; ++j) entries[j] = 0.0f;
  }
};
