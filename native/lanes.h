/* A few 64-bit words side by side, for sums.h and transform.h. TIMES multiplies the low 32 bits of each. */
#ifndef DEEPREDUCE_LANES_H
#define DEEPREDUCE_LANES_H

#include "residues.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LANES 4
#define TARGET __attribute__((target("avx2")))
typedef uint64_t Vector __attribute__((vector_size(32)));
typedef int64_t Signed __attribute__((vector_size(32)));
#define LOAD(p) ((Vector)_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define STORE(p, x) _mm256_storeu_si256((__m256i *)(void *)(p), (__m256i)(x))
#define TIMES(a, b) ((Vector)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define HAS_VECTORS() (__builtin_cpu_supports("avx2") != 0)
#elif defined(__aarch64__)
#include <arm_neon.h>
#define LANES 2
#define TARGET
typedef uint64_t Vector __attribute__((vector_size(16)));
#define LOAD(p) ((Vector)vld1q_u64(p))
#define STORE(p, x) vst1q_u64(p, (uint64x2_t)(x))
#define TIMES(a, b) ((Vector)vmull_u32(vmovn_u64((uint64x2_t)(a)), vmovn_u64((uint64x2_t)(b))))
#define HAS_VECTORS() 1
#else
#define HAS_VECTORS() 0
#endif

/* Whether they are used: set when the module is loaded, and by tests of what runs without them. */
static int with_vectors = 0;

#if defined(__x86_64__)
/* Factors side by side. */
typedef struct {
    Vector w, w_high, quotient, quotient_high;
} Factors4;

TARGET static inline Factors4 factors_of(Vector w, Vector quotient) {
    const Factors4 found = {w, w >> 32, quotient, quotient >> 32};
    return found;
}

TARGET static inline Vector low_product(Vector a, Vector a_high, Vector b, Vector b_high) {
    return TIMES(a, b) + ((TIMES(a, b_high) + TIMES(a_high, b)) << 32);
}

/* w x modulo p, or up to 3 p more, for any x: the guess leaves out what it would carry, and is up to two less than that of
 * `times`. */
TARGET static inline Vector times4(const Factors4 *factor, Vector x, Vector p, Vector p_high) {
    const Vector high = x >> 32;
    const Vector guess = TIMES(factor->quotient_high, high) + (TIMES(factor->quotient_high, x) >> 32) + (TIMES(factor->quotient, high) >> 32);
    return low_product(factor->w, factor->w_high, x, high) - low_product(guess, guess >> 32, p, p_high);
}

/* For numbers below 2^63. */
TARGET static inline Vector less4(Vector x, Vector modulus) { return x - (modulus & (Vector)((Signed)x >= (Signed)modulus)); }
#endif

#endif
