/* Arithmetic modulo one prime of at most 60 bits, for homomorphic.c and transform.h. */
#ifndef DEEPREDUCE_RESIDUES_H
#define DEEPREDUCE_RESIDUES_H

#include <stddef.h>
#include <stdint.h>

#define MOST_BITS 60 /* of a prime */

__extension__ typedef unsigned __int128 Wide;

/* A prime, and what Montgomery's reduction needs (Mathematics of Computation 44, 1985): S 2^-64 modulo p of any S < p 2^64 is
 * the high word of S - p (S p^-1 mod 2^64), or p more. */
typedef struct {
    uint64_t p, inverse; /* p^-1 modulo 2^64 */
    uint64_t back;       /* 2^128 modulo p: reducing twice divides by as much */
} Prime;

static Prime prime_of(uint64_t p) {
    Prime prime = {p, p, (uint64_t)(((Wide)0 - 1) % p + 1) % p};
    for (int i = 0; i < 5; i++) { /* 3 right bits, then twice as many each time */
        prime.inverse *= 2 - p * prime.inverse;
    }
    return prime;
}

static inline uint64_t reduce(const Prime *prime, uint64_t low, uint64_t high) {
    const uint64_t taken = (uint64_t)(((Wide)(low * prime->inverse) * prime->p) >> 64);
    return high - taken + (high < taken ? prime->p : 0);
}

/* (high 2^64 + low) modulo the prime, for high below it. */
static inline uint64_t remainder_of(const Prime *prime, uint64_t low, uint64_t high) {
    const Wide scaled = (Wide)reduce(prime, low, high) * prime->back;
    return reduce(prime, (uint64_t)scaled, (uint64_t)(scaled >> 64));
}

static inline uint64_t multiply(const Prime *prime, uint64_t a, uint64_t b) {
    const Wide product = (Wide)a * b;
    return remainder_of(prime, (uint64_t)product, (uint64_t)(product >> 64));
}

static inline uint64_t subtract(const Prime *prime, uint64_t a, uint64_t b) { return a - b + (a < b ? prime->p : 0); }

/* A factor w with floor(w 2^64 / p), which makes a product modulo p two multiplications and a guess (Shoup). */
typedef struct {
    uint64_t w, quotient;
} Factor;

static inline Factor factor_of(uint64_t w, uint64_t p) {
    const Factor factor = {w, (uint64_t)(((Wide)w << 64) / p)};
    return factor;
}

/* w x modulo p, or p more, for any x. */
static inline uint64_t times(Factor factor, uint64_t x, uint64_t p) {
    return factor.w * x - (uint64_t)(((Wide)factor.quotient * x) >> 64) * p;
}

static inline uint64_t less(uint64_t x, uint64_t modulus) { return x - (x >= modulus ? modulus : 0); }

#endif
