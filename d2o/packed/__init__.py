"""Keys and values held in few bits, as KIVI does (arXiv 2402.02750), under any method that only drops slots."""
