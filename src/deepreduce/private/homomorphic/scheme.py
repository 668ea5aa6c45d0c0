"""The thin edge to SEAL: contexts, keys, and the way of numbers in and out of its objects.

SEAL's own serialised form is used inside a process only. It is rebuilt from a header that SEAL wrote itself and words
that were checked to be below their primes, so that SEAL's parser never meets a byte of the other party.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...errors import problem
from ._seal import seal
from .errors import ParameterError
from .packing import Words
from .parameters import Parameters

Form = Literal["coefficients", "transformed", "answer"]
"""Of a ciphertext: coefficients or NTT values modulo all data primes, or coefficients modulo those of an answer."""


@dataclass(frozen=True)
class Keys:
    """A client's keys for one set of parameters.

    Attributes:
        parameters: the parameters.
        secret: NTT values of the secret key modulo all primes. Whoever has them can decrypt.
        public: NTT values of the public key, for the server.
    """

    parameters: Parameters
    secret: bytes = field(repr=False)
    public: bytes = field(repr=False)


class Scheme:
    """SEAL's context for some parameters; `scheme` keeps one per process and parameters."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        n = parameters.degree
        chosen = seal.EncryptionParameters(seal.scheme_type.bfv)
        chosen.set_poly_modulus_degree(n)
        bits = [*parameters.prime_bits, parameters.special_bits]
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(n, bits))
        chosen.set_plain_modulus(1 << parameters.ring_bits)
        self.context = seal.SEALContext(chosen, True, seal.sec_level_type.tc128)
        qualifiers = self.context.first_context_data().qualifiers()
        if not self.context.parameters_set() or qualifiers.sec_level != seal.sec_level_type.tc128:
            raise ParameterError(
                problem(
                    "SEAL must accept the parameters as 128-bit secure",
                    got=f"{parameters}: {self.context.parameter_error_message()}",
                    remedy="use seal-python 4.4 and parameters from choose_parameters",
                )
            )
        self.key_primes = tuple(modulus.value() for modulus in chosen.coeff_modulus())
        self.primes = self.key_primes[:-1]
        self.evaluator = seal.Evaluator(self.context)
        self.first = self.context.first_parms_id()
        self.answer_primes = self.primes[: len(parameters.answer_prime_bits)]
        level = self.context.first_context_data()
        for _ in self.primes[len(self.answer_primes) :]:
            level = level.next_context_data()
        self.answer_level = level.parms_id()
        self._read_formats()

    def _read_formats(self) -> None:
        """Take the headers of SEAL's serialised objects from objects that it made."""
        n, count = self.parameters.degree, len(self.primes)
        keys = seal.KeyGenerator(self.context)
        secret, public = keys.secret_key(), keys.create_public_key()
        self._secret_header = secret.to_string()[: -8 * n * (count + 1)]
        self._public_header = public.to_string()[: -16 * n * (count + 1)]
        fresh = seal.Encryptor(self.context, public).encrypt_zero()
        switched = self.evaluator.mod_switch_to(fresh, self.answer_level)
        transformed = self.evaluator.transform_to_ntt(fresh)
        self._headers: dict[Form, bytes] = {
            "coefficients": _raw(fresh)[: -16 * n * count],
            "transformed": _raw(transformed)[: -16 * n * count],
            "answer": _raw(switched)[: -16 * n * len(self.answer_primes)],
        }
        plain = seal.Plaintext(n)
        self._plain_header = _raw(plain)[: -8 * n]
        self._weights_header = _raw(self.evaluator.transform_to_ntt(plain, self.first))[: -8 * n * count]
        probe = np.arange(2 * n * count, dtype=np.uint64).reshape(2, count, n)
        if not np.array_equal(self.words(self.ciphertext(probe, "transformed")), probe):
            raise ParameterError(
                problem(
                    "SEAL must read back the ciphertexts that it is given",
                    got="a version with another serialised form",
                    remedy="install seal-python 4.4",
                )
            )

    def keys(self) -> Keys:
        """Draw a fresh pair of keys; SEAL seeds its generators from the operating system."""
        generator = seal.KeyGenerator(self.context)
        secret = generator.secret_key().to_string()[len(self._secret_header) :]
        public = generator.create_public_key().to_string()[len(self._public_header) :]
        return Keys(self.parameters, secret, public)

    def key_words(self, key: bytes) -> Words:
        """Return the words of a key, either half of `Keys`, for the data primes: (polynomial, prime, coefficient)."""
        words = np.frombuffer(key, "<u8").reshape(-1, len(self.key_primes), self.parameters.degree)
        return np.ascontiguousarray(words[:, : len(self.primes)], np.uint64)

    def encryptor(self, keys: Keys) -> seal.Encryptor:
        """Return the symmetric encryptor of a client."""
        return seal.Encryptor(self.context, self._secret(keys.secret))

    def decryptor(self, keys: Keys) -> seal.Decryptor:
        """Return the decryptor of a client."""
        return seal.Decryptor(self.context, self._secret(keys.secret))

    def public_encryptor(self, public: bytes) -> seal.Encryptor:
        """Return the encryptor for a client's public key, whose words must be in range."""
        return seal.Encryptor(self.context, self.context.from_public_str(self._public_header + public))

    def secret_weights(self, keys: Keys) -> seal.Plaintext:
        """Return the secret key as a polynomial that ciphertexts can be multiplied by."""
        size = 8 * self.parameters.degree * len(self.primes)
        return self.weights(keys.secret[:size])

    def _secret(self, secret: bytes) -> seal.SecretKey:
        return self.context.from_secret_str(self._secret_header + secret)

    def plaintext(self, values: Words) -> seal.Plaintext:
        """Return a message; `values` holds N ring elements below 2^k."""
        found = seal.Plaintext()
        found.load_bytes(self.context, self._plain_header + values.astype("<u8", copy=False).tobytes())
        return found

    def values(self, plaintext: seal.Plaintext) -> Words:
        """Return the N ring elements of a message."""
        words = np.frombuffer(_raw(plaintext), "<u8", offset=len(self._plain_header))
        found = np.zeros(self.parameters.degree, np.uint64)
        found[: words.size] = words
        return found

    def transform(self, values: Words) -> bytes:
        """Return the NTT values of a polynomial of weights given modulo t: data primes times N words of 8 bytes."""
        plain = self.evaluator.transform_to_ntt(self.plaintext(values), self.first)
        return _raw(plain)[len(self._weights_header) :]

    def weights(self, transformed: bytes) -> seal.Plaintext:
        """Return what `transform` made as a polynomial that ciphertexts can be multiplied by."""
        found = seal.Plaintext()
        found.load_bytes(self.context, self._weights_header + transformed)
        return found

    def words(self, ciphertext: seal.Ciphertext) -> Words:
        """Return the words of a ciphertext: polynomial (2), prime, coefficient."""
        raw = _raw(ciphertext)
        primes = ciphertext.coeff_modulus_size()
        words = np.frombuffer(raw, "<u8", offset=len(self._headers["coefficients"]))
        return words.reshape(2, primes, self.parameters.degree).astype(np.uint64)  # behind the header they lie anywhere

    def ciphertext(self, words: Words, form: Form) -> seal.Ciphertext:
        """Return the ciphertext with these words, all of which must be below their primes."""
        found = seal.Ciphertext()
        found.load_bytes(self.context, self._headers[form] + words.astype("<u8", copy=False).tobytes())
        return found


@functools.lru_cache(maxsize=8)
def scheme(parameters: Parameters) -> Scheme:
    """Return this process's context for some parameters.

    Raises:
        ParameterError: SEAL does not take them.
    """
    return Scheme(parameters)


def _raw(thing: seal.Plaintext | seal.Ciphertext) -> bytes:
    write = thing.to_bytes if isinstance(thing, seal.Plaintext) else thing.to_string
    return bytes(write(seal.compr_mode_type.none))
