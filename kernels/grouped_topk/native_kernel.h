// One thread's share of the tokens. Compiled once per instruction set (shared/per_isa.h).
//
// Floor per token: E * itemsize bytes read, 8 * top_k written, and a key for each expert (an
// exponential or a sigmoid), as two loops in bench/floors_loops.h. Measured at 16384 tokens on two
// cores of an AMD EPYC with AVX-512: 1.9 to 3.1 times that for 64/8/1 (columns), 3.0 to 3.6 times
// for DeepSeek-V3 (rows), where selecting 8 of the keys takes half of the time, ranking the groups
// and the sigmoids a fifth each: what is left of it is instructions, not waiting for memory.

#include "scores.h"

#include "native_backward.h"
#include "native_rows.h"

#include "native_columns.h"

template <class T>
void route(const T* logits, int64_t stride, int64_t n, const Options& o, float* weights,
           int32_t* experts) {
  if (o.balanced && o.kept == o.groups && o.per_group <= FEW)
    route_columns(logits, stride, n, o, weights, experts);
  else
    route_rows(logits, stride, n, o, weights, experts);
}
