/* AES-128 with the processor's own instructions: key expansion, ECB encryption of many blocks in flight, and the two
 * linear maps that hashes from a block cipher need.
 *
 * Header only, no dependency, no table look-up: nothing here branches on or indexes by a secret.
 * Every function that needs AES-NI carries DR_TARGET_AES, so the file compiles without -maes; a caller must itself
 * carry DR_TARGET_AES and must have asked dr_has_aes() once before.
 *
 * Block order: byte 0 of a block in memory is byte 0 of FIPS-197's input; the "lowest bit" of a block is bit 0 of byte 0.
 */
#ifndef DEEPREDUCE_AES128_H
#define DEEPREDUCE_AES128_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DR_X86 1
#else
#define DR_X86 0
#endif

#if DR_X86
#include <cpuid.h>
#include <immintrin.h>

#define DR_TARGET_AES __attribute__((target("aes,ssse3,sse4.1")))

typedef struct {
    __m128i round[11];
} dr_aes_key;

/* Does this processor have AES-NI, SSSE3 and SSE4.1? Ask once and keep the answer: CPUID traps under a hypervisor. */
static inline int dr_has_aes(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) {
        return 0;
    }
    return ((c >> 25) & 1) && ((c >> 9) & 1) && ((c >> 19) & 1);
}

/* FIPS-197 section 5.2, one round: w[i] = w[i-4] xor f(w[i-1]) for the four words of a round key at once. */
DR_TARGET_AES static inline __m128i dr_expand_step(__m128i key, __m128i assisted) {
    assisted = _mm_shuffle_epi32(assisted, 0xff);
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
    return _mm_xor_si128(key, assisted);
}

/* Expand a 16-byte key; `key` need not be aligned, `out` is. */
DR_TARGET_AES static inline void dr_aes_expand(const uint8_t key[16], dr_aes_key *out) {
    __m128i k = _mm_loadu_si128((const __m128i *)(const void *)key);
    out->round[0] = k;
#define DR_STEP(i, rcon) out->round[i] = k = dr_expand_step(k, _mm_aeskeygenassist_si128(k, rcon))
    DR_STEP(1, 0x01);
    DR_STEP(2, 0x02);
    DR_STEP(3, 0x04);
    DR_STEP(4, 0x08);
    DR_STEP(5, 0x10);
    DR_STEP(6, 0x20);
    DR_STEP(7, 0x40);
    DR_STEP(8, 0x80);
    DR_STEP(9, 0x1b);
    DR_STEP(10, 0x36);
#undef DR_STEP
}

/* Encrypt one block. */
DR_TARGET_AES static inline __m128i dr_aes_encrypt1(const dr_aes_key *key, __m128i x) {
    x = _mm_xor_si128(x, key->round[0]);
    for (int r = 1; r < 10; r++) {
        x = _mm_aesenc_si128(x, key->round[r]);
    }
    return _mm_aesenclast_si128(x, key->round[10]);
}

/* Encrypt eight blocks in place under one key. Eight, because an AES round has a latency of 3 to 8 cycles and a throughput
 * of one or two per cycle: eight independent blocks keep the unit busy and still fit into sixteen registers. */
DR_TARGET_AES static inline void dr_aes_encrypt8(const dr_aes_key *key, __m128i x[8]) {
    __m128i k = key->round[0];
    __m128i x0 = _mm_xor_si128(x[0], k), x1 = _mm_xor_si128(x[1], k), x2 = _mm_xor_si128(x[2], k),
            x3 = _mm_xor_si128(x[3], k), x4 = _mm_xor_si128(x[4], k), x5 = _mm_xor_si128(x[5], k),
            x6 = _mm_xor_si128(x[6], k), x7 = _mm_xor_si128(x[7], k);
    for (int r = 1; r < 10; r++) {
        k = key->round[r];
        x0 = _mm_aesenc_si128(x0, k);
        x1 = _mm_aesenc_si128(x1, k);
        x2 = _mm_aesenc_si128(x2, k);
        x3 = _mm_aesenc_si128(x3, k);
        x4 = _mm_aesenc_si128(x4, k);
        x5 = _mm_aesenc_si128(x5, k);
        x6 = _mm_aesenc_si128(x6, k);
        x7 = _mm_aesenc_si128(x7, k);
    }
    k = key->round[10];
    x[0] = _mm_aesenclast_si128(x0, k);
    x[1] = _mm_aesenclast_si128(x1, k);
    x[2] = _mm_aesenclast_si128(x2, k);
    x[3] = _mm_aesenclast_si128(x3, k);
    x[4] = _mm_aesenclast_si128(x4, k);
    x[5] = _mm_aesenclast_si128(x5, k);
    x[6] = _mm_aesenclast_si128(x6, k);
    x[7] = _mm_aesenclast_si128(x7, k);
}

/* Encrypt `blocks` blocks of 16 bytes from `in` to `out` (unaligned; in place allowed, partial overlap not). */
DR_TARGET_AES static inline void dr_aes_ecb(const dr_aes_key *key, const uint8_t *in, uint8_t *out, size_t blocks) {
    size_t i = 0;
    for (; i + 8 <= blocks; i += 8) {
        __m128i x[8];
        for (int j = 0; j < 8; j++) {
            x[j] = _mm_loadu_si128((const __m128i *)(const void *)(in + 16 * (i + (size_t)j)));
        }
        dr_aes_encrypt8(key, x);
        for (int j = 0; j < 8; j++) {
            _mm_storeu_si128((__m128i *)(void *)(out + 16 * (i + (size_t)j)), x[j]);
        }
    }
    for (; i < blocks; i++) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(in + 16 * i));
        _mm_storeu_si128((__m128i *)(void *)(out + 16 * i), dr_aes_encrypt1(key, x));
    }
}

/* Write the key stream AES(key, counter), AES(key, counter + 1), ...: `blocks` blocks, the counter a 64-bit little-endian
 * number in bytes 0 to 7, bytes 8 to 15 zero. The caller sees to it that counter + blocks does not wrap. */
DR_TARGET_AES static inline void dr_aes_ctr(const dr_aes_key *key, uint64_t counter, uint8_t *out, size_t blocks) {
    size_t i = 0;
    for (; i + 8 <= blocks; i += 8) {
        __m128i x[8];
        for (int j = 0; j < 8; j++) {
            x[j] = _mm_set_epi64x(0, (long long)(counter + i + (uint64_t)j));
        }
        dr_aes_encrypt8(key, x);
        for (int j = 0; j < 8; j++) {
            _mm_storeu_si128((__m128i *)(void *)(out + 16 * (i + (size_t)j)), x[j]);
        }
    }
    for (; i < blocks; i++) {
        __m128i x = _mm_set_epi64x(0, (long long)(counter + i));
        _mm_storeu_si128((__m128i *)(void *)(out + 16 * i), dr_aes_encrypt1(key, x));
    }
}

/* sigma(high || low) = (high xor low) || high, a linear orthomorphism: x -> sigma(x) and x -> sigma(x) xor x are both
 * bijections, and sigma(sigma(x)) = sigma(x) xor x (Guo, Katz, Wang, Yu, IEEE S&P 2020, section 7.3).
 * `low` are bytes 0 to 7. */
DR_TARGET_AES static inline __m128i dr_sigma(__m128i x) {
    const __m128i high = _mm_set_epi64x(-1, 0);
    return _mm_xor_si128(_mm_shuffle_epi32(x, 0x4e), _mm_and_si128(x, high));
}

/* Doubling in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, bit 0 of byte 0 being the coefficient of x^0. */
DR_TARGET_AES static inline __m128i dr_double(__m128i x) {
    /* The top bits of both halves, each spread over the half that it carries into. */
    __m128i carry = _mm_srai_epi32(_mm_shuffle_epi32(x, 0x5f), 31);
    carry = _mm_and_si128(carry, _mm_set_epi64x(1, 0x87));
    return _mm_xor_si128(_mm_slli_epi64(x, 1), carry);
}
#endif /* DR_X86 */

#endif /* DEEPREDUCE_AES128_H */
