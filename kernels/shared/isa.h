// Which instruction set the CPU kernels use: the best this machine has, or less on request.
#pragma once

enum class Isa { portable, avx2, avx512 };

// Decided once per process. TRISELECT_CPU_CAPABILITY = portable | avx2 | avx512 lowers it.
Isa isa();

// Whether that includes products of pairs of bfloat16, for functions with a target of their own.
bool has_pairs();
